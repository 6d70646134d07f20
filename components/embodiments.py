"""Robots that differ in states and actions: how many there are, and what each of them has of its own.

Vectors are as wide as the widest robot's; narrower ones end in zeros. `embodiment` (B,) holds the place of each
sample's robot among the sorted names.
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
    """Number of robots that the data tells apart; None where it does not."""
    spec = inputs.get(EMBODIMENT)
    return spec.vocab if spec is not None and spec.kind is Kind.EMBODIMENT else None


def required_embodiments(inputs: Specs, field: str) -> int:
    """Number of robots, for an option that means something only for several; raises SpecError where the data has one."""
    count = embodiments(inputs)
    if count is None:
        raise SpecError(
            f"`{field}` needs to know which robot a sample is from, and the data does not say",
            field=field,
            label="the data has one robot",
            help=f"remove `{field}`, or name the robots' datasets under `data.sources`",
        )
    return count


def facts_by_robot(inputs: Specs, facts: Facts) -> list[Facts]:
    """Facts of each robot, in the order of their numbers; where the data tells no robots apart, the facts alone.

    The statistics of several robots are `{name: {key: {"mean": [...], ...}}}`, each as wide as the robot's own vectors.
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


def padding(batch: Batch) -> Tensor:
    """Which values of the actions do not count (B, H, A): steps after the end, and dimensions a robot does not have."""
    steps: Tensor = batch["action_is_pad"][..., None]
    dims = batch.get(ACTION_PADDING)
    return steps.expand_as(batch["action"]) if dims is None else steps | dims[:, None]


def padded(values: Tensor, width: int) -> Tensor:
    """Vectors (..., D) with zeros after the last dimension, (..., width)."""
    return F.pad(values, (0, width - values.shape[-1]))


def each_own(table: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Rows of a table (R, D) for samples of robots ids (B,), shaped to meet values (B, ..., D)."""
    rows: Tensor = table[ids]
    return rows.reshape(len(ids), *[1] * (values.ndim - 2), -1)


def ids_of(batch: Any) -> Tensor:
    """The robots' numbers (B,) of a batch. Raises SpecError where it does not say."""
    if EMBODIMENT not in batch:
        raise SpecError(
            f"the batch lacks `{EMBODIMENT}`: several robots are told apart by their numbers",
            help="give the number of each sample's robot among the sorted names, int64 (B,)",
        )
    ids: Tensor = batch[EMBODIMENT]
    return ids
