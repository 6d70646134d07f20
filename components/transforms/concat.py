from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Range, Spec, Specs
from ..base import Batch, Facts, Transform
from ..vectors.specs import changed_spec, find_vector


class ConcatStates(Transform):
    """Concatenation of several states (B, T, S), in the given order; the single states are removed.

    For datasets with separate joints, gripper and pose. The inverse splits them again.
    """

    class Config(PartConfig):
        type: Literal["concat"]
        keys: list[str] = Field(min_length=1)
        """States to concatenate, in this order, such as `[observation.joints, observation.gripper]`."""
        to: str = "observation.state"
        """Name of the resulting state."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._widths = [inputs[key].width for key in config.keys]

    @classmethod
    def needs(cls, config: Config, inputs: Specs) -> Collection[str]:
        return config.keys

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs with the states concatenated; raise SpecError if the states do not fit."""
        states = [find_vector(key, inputs, f"keys.{i}", (Kind.STATE,)) for i, key in enumerate(config.keys)]
        if len(set(config.keys)) < len(config.keys):
            raise SpecError("a state is named twice", field="keys", label="named twice")
        if not config.to.startswith("observation.") or (config.to in inputs and config.to not in config.keys):
            problem = "exists already" if config.to in inputs else "is not the name of an observation"
            raise SpecError(
                f"`{config.to}` {problem}",
                field="to",
                label=problem,
                help="choose another name that begins with `observation.`, or name the state under `keys`",
            )
        first = states[0]
        for key, spec in zip(config.keys, states, strict=True):
            if spec.dims[1] != first.dims[1]:
                raise SpecError(
                    f"`{key}` is {spec} and `{config.keys[0]}` is {first}; their steps differ", source=key
                )
            if (spec.range is Range.NORMALIZED) != (first.range is Range.NORMALIZED):
                raise SpecError(
                    f"only one of `{config.keys[0]}` and `{key}` is normalized",
                    source=key,
                    trait="range",
                    label="not both normalized",
                    help="put `concat` before `normalize`, or normalize all of them first",
                )
        width = sum(spec.width for spec in states)
        why = " + ".join(f"{spec.width} ({key})" for key, spec in zip(config.keys, states, strict=True))
        kept = {key: spec for key, spec in inputs.items() if key not in config.keys}
        joined = changed_spec(first, "", width)
        is_normal = first.range is Range.NORMALIZED
        return {**kept, config.to: replace(joined, why=why, range=first.range if is_normal else joined.range)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="concat", keys=["observation.state"], to="observation.joined")

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the concatenated state (float32); raise SpecError if a state is missing."""
        found = [key for key in self.config.keys if key in batch]
        if not found:
            return dict(batch)
        if len(found) < len(self.config.keys):
            missing = [key for key in self.config.keys if key not in batch]
            raise SpecError(f"`concat` needs `{missing[0]}`", help=f"given: {', '.join(found)}")
        kept = {key: value for key, value in batch.items() if key not in found}
        return {**kept, self.config.to: torch.cat([batch[key].float() for key in found], dim=-1)}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the single states."""
        if self.config.to not in batch:
            return dict(batch)
        kept = {key: value for key, value in batch.items() if key != self.config.to}
        parts = batch[self.config.to].split(self._widths, dim=-1)
        return {**kept, **dict(zip(self.config.keys, parts, strict=True))}
