"""Keys, dimensions and statistics of states (B, T, S) and actions (B, H, A), for transforms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Kind, Range, Spec, Specs
from ..base import Facts
from ..embodiments import facts_by_robot

VECTORS = (Kind.STATE, Kind.ACTION)


def vectors(inputs: Specs, kinds: Collection[Kind] = VECTORS) -> dict[str, Spec]:
    """Return the states and actions among the inputs, or those of one kind."""
    return {key: spec for key, spec in inputs.items() if spec.kind in kinds}


def select_vectors(
    keys: Sequence[str] | None, inputs: Specs, kinds: Collection[Kind] = VECTORS
) -> dict[str, Spec]:
    """Return the vectors that the option `keys` names, by default all; raise SpecError for an unknown one."""
    known = vectors(inputs, kinds)
    for position, key in enumerate(keys or ()):
        find_vector(key, inputs, f"keys.{position}", kinds)
    return known if keys is None else {key: known[key] for key in keys}


def find_vector(key: str, inputs: Specs, field: str, kinds: Collection[Kind] = VECTORS) -> Spec:
    """Return the state or action that an option names; raise SpecError if there is none."""
    known = vectors(inputs, kinds)
    if key not in known:
        raise SpecError(
            f"`{key}` is not a {' or '.join(kinds)}",
            field=field,
            label=f"is {inputs[key]}" if key in inputs else "unknown key",
            help=f"known: {', '.join(known) or 'none'}",
        )
    return known[key]


def resolve_dims(dims: Sequence[int], width: int, key: str, field: str) -> list[int]:
    """Return dimensions of a vector counted from 0; raise SpecError for one out of range or named twice."""
    found: list[int] = []
    for position, dim in enumerate(dims):
        column = dim if dim >= 0 else width + dim
        if not 0 <= column < width or column in found:
            problem = "is named twice" if column in found else f"is not among the {width} of `{key}`"
            raise SpecError(
                f"dimension {dim} {problem}",
                field=f"{field}.{position}",
                source=key,
                label=problem,
                help=f"dimensions are 0 to {width - 1}, or -{width} to -1 from the end",
            )
        found.append(column)
    return found


def refuse_normalized_vector(key: str, spec: Spec, name: str, why: str) -> None:
    """Raise SpecError for a vector that is already normalized; `why` says in a phrase what `name` needs."""
    if spec.range is Range.NORMALIZED:
        raise SpecError(
            f"`{name}` {why}, but `{key}` is normalized",
            source=key,
            trait="range",
            label="too late",
            help="put it before `normalize`",
        )


def changed_spec(spec: Spec, why: str, width: int | None = None) -> Spec:
    """Return the spec of values that a transform changed, with another width if given."""
    dims = spec.dims if width is None else (*spec.dims[:-1], width)
    why = f"{spec.why}, {why}".removeprefix(", ")
    return replace(spec, dims=dims, why=why, range=Range.CHANGED, bounds=None)


def with_bounds(inputs: Specs, facts: Facts) -> dict[str, Spec]:
    """Return the inputs with the bounds of states and actions, from the statistics of the dataset."""
    known = dict(inputs)
    robots = facts_by_robot(inputs, facts)
    for key, spec in vectors(inputs).items():
        held = [own.get("statistics", {}).get(key, {}) for own in robots]
        ends = [end for one in held for name in ("min", "max") for end in one.get(name, ())]
        if ends:
            known[key] = replace(spec, bounds=(min(ends), max(ends)))
    return known


def statistics_of(key: str, spec: Spec, facts: Facts) -> Mapping[str, Any]:
    """Return statistics of the values of a vector, as a transform receives them; empty if there are none.

    Raises:
        SpecError: Only statistics of the dataset are known, and an earlier transform changed the values.
    """
    measured = facts.get("measured", {})
    if key in measured:
        found: Mapping[str, Any] = measured[key]
        return found
    if spec.range is Range.CHANGED:
        raise SpecError(
            f"the statistics of `{key}` are those of the dataset, but an earlier transform changes its values",
            source=key,
            trait="range",
            label="stale statistics",
            help=f'pass those of the changed values in facts["measured"]["{key}"]; building from a recipe does it',
        )
    of_dataset: Mapping[str, Any] = facts.get("statistics", {}).get(key, {})
    return of_dataset


class Constants:
    """Lists of numbers, or of rows of numbers, as tensors on the device where they are used.

    They are not buffers: they must survive a cast of the model to bf16 and construction on the meta device.
    """

    def __init__(self, **values: Sequence[Any]) -> None:
        self._values = {name: list(numbers) for name, numbers in values.items()}
        self._tensors: dict[torch.device, dict[str, Tensor]] = {}

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return each list as one tensor, bool or float32."""
        if device not in self._tensors:
            with torch.inference_mode(False):  # otherwise training could not use tensors created in inference
                self._tensors[device] = {
                    name: torch.tensor(numbers, device=device) for name, numbers in self._values.items()
                }
        return self._tensors[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": {}}
