"""Robots with different states and actions.

Vectors have the width of the widest robot's; narrower ones end in zeros. `embodiment` (B,) is the position of
each sample's robot among the sorted names.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..schemas.errors import SpecError
from ..schemas.specs import Kind, Specs
from .base import Batch, Facts

EMBODIMENT = "embodiment"
ACTION_PADDING = "action_dim_is_pad"


def embodiments(inputs: Specs) -> int | None:
    """Return the number of robots in the data; None if the data does not distinguish robots."""
    spec = inputs.get(EMBODIMENT)
    return spec.vocab if spec is not None and spec.kind is Kind.EMBODIMENT else None


def required_embodiments(inputs: Specs, field: str) -> int:
    """Return the number of robots, for an option that requires several; raise SpecError for data of one."""
    count = embodiments(inputs)
    if count is None:
        raise SpecError(
            f"`{field}` needs to know which robot a sample is from, and the data does not record it",
            field=field,
            label="the data has one robot",
            help=f"remove `{field}`, or name the robots' datasets under `data.sources`",
        )
    return count


def facts_by_robot(inputs: Specs, facts: Facts) -> list[Facts]:
    """Return the facts of each robot, in order; the facts alone if the data does not distinguish robots.

    The statistics of several robots are `{name: {key: {"mean": [...], ...}}}`, as wide as the robot's own
    vectors.
    """
    if embodiments(inputs) is None:
        return [facts]
    shared = {name: value for name, value in facts.items() if name not in _BY_ROBOT}
    held = {name: facts[name] for name in _BY_ROBOT if name in facts}
    return [
        {**shared, **{name: robots.get(robot, {}) for name, robots in held.items()}}
        for robot in sorted(facts.get("statistics", {}))
    ]


_BY_ROBOT = ("statistics", "measured")


def padding_mask(batch: Batch) -> Tensor:
    """Return a mask (B, H, A) of padding in actions: steps after the end, and dimensions a robot lacks."""
    steps: Tensor = batch["action_is_pad"][..., None]
    dims = batch.get(ACTION_PADDING)
    return steps.expand_as(batch["action"]) if dims is None else steps | dims[:, None]


def pad_width(values: Tensor, width: int) -> Tensor:
    """Pad vectors (..., D) with zeros to (..., width)."""
    return F.pad(values, (0, width - values.shape[-1]))


def rows_by_robot(table: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Return rows of a table (R, D) for robots ids (B,), shaped to broadcast with values (B, ..., D)."""
    rows: Tensor = table[ids]
    return rows.reshape(len(ids), *[1] * (values.ndim - 2), -1)


def ids_of(batch: Any) -> Tensor:
    """Return the robots' numbers (B,) in a batch; raise SpecError if they are missing."""
    if EMBODIMENT not in batch:
        raise SpecError(
            f"the batch lacks `{EMBODIMENT}`, which distinguishes the robots",
            help="add the number of each sample's robot among the sorted names, int64 (B,)",
        )
    ids: Tensor = batch[EMBODIMENT]
    return ids
