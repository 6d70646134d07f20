"""Join states."""

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
from ..vectors.specs import changed, vector


class Concat(Transform):
    """Joins several states (B, T, S) into one, in the order given; the single ones are gone.

    For datasets that keep joints, gripper and pose apart. The inverse splits them again.
    """

    class Config(PartConfig):
        """Join states."""

        type: Literal["concat"]
        """Join several states into one."""
        keys: list[str] = Field(min_length=1)
        """The states to join, in this order, such as `[observation.joints, observation.gripper]`."""
        to: str = "observation.state"
        """Name of the joined state."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._widths = [inputs[key].width for key in config.keys]

    @classmethod
    def needs(cls, config: Config, inputs: Specs) -> Collection[str]:
        return config.keys

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs but those joined, and the joined one; raises SpecError for states that cannot be joined."""
        states = [vector(key, inputs, f"keys.{i}", (Kind.STATE,)) for i, key in enumerate(config.keys)]
        if len(set(config.keys)) < len(config.keys):
            raise SpecError("a state is named twice", field="keys", label="the same state again")
        if not config.to.startswith("observation.") or (config.to in inputs and config.to not in config.keys):
            problem = "exists already" if config.to in inputs else "is no name of an observation"
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
            if (spec.range is Range.NORMALISED) != (first.range is Range.NORMALISED):
                raise SpecError(
                    f"of `{config.keys[0]}` and `{key}` only one is normalised",
                    source=key,
                    trait="range",
                    label="normalised and not",
                    help="put `concat` before `normalize`, or after all are normalised",
                )
        width = sum(spec.width for spec in states)
        why = " + ".join(f"{spec.width} ({key})" for key, spec in zip(config.keys, states, strict=True))
        kept = {key: spec for key, spec in inputs.items() if key not in config.keys}
        joined = changed(first, "", width)
        is_normal = first.range is Range.NORMALISED
        return {**kept, config.to: replace(joined, why=why, range=first.range if is_normal else joined.range)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="concat", keys=["observation.state"], to="observation.joined")

    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch with the joined state (float32). Raises SpecError where only some of the states are there."""
        found = [key for key in self.config.keys if key in batch]
        if not found:
            return dict(batch)
        if len(found) < len(self.config.keys):
            missing = [key for key in self.config.keys if key not in batch]
            raise SpecError(f"`concat` needs `{missing[0]}`", help=f"given: {', '.join(found)}")
        kept = {key: value for key, value in batch.items() if key not in found}
        return {**kept, self.config.to: torch.cat([batch[key].float() for key in found], dim=-1)}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """A new batch with the single states."""
        if self.config.to not in batch:
            return dict(batch)
        kept = {key: value for key, value in batch.items() if key != self.config.to}
        parts = batch[self.config.to].split(self._widths, dim=-1)
        return {**kept, **dict(zip(self.config.keys, parts, strict=True))}
