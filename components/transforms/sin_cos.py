"""Sines and cosines of angles in the state."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Batch, Facts, Transform
from ..vectors.specs import changed, chosen, columns, refuse_normalised

_STATES = (Kind.STATE,)


class SinCos(Transform):
    """Replaces angles by their sines, then their cosines, after all other dimensions: S values become S + angles.

    So that an angle just below pi and one just above -pi look alike. The inverse gives angles in (-pi, pi].
    Only for states, in radians: of actions full turns would be lost.
    """

    class Config(PartConfig):
        """Sines and cosines of angles in the state."""

        type: Literal["sin_cos"]
        """Replace angles of the state, in radians, by their sines and cosines."""
        keys: list[str] | None = Field(default=None, min_length=1)
        """States to change; by default all of them."""
        dims: list[int] | None = Field(default=None, min_length=1)
        """Dimensions that are angles; by default all. -1 is the last."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._angles = {
            key: _angles(config, key, spec) for key, spec in chosen(config.keys, inputs, _STATES).items()
        }
        self._widths = {key: inputs[key].width for key in self._angles}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, with wider states; raises SpecError for an unknown key or dimension, and normalised values."""
        found = {}
        for key, spec in chosen(config.keys, inputs, _STATES).items():
            refuse_normalised(key, spec, "sin_cos", "reads radians")
            count = len(_angles(config, key, spec))
            found[key] = changed(spec, f"{count} angles as sine and cosine", spec.width + count)
        return {**inputs, **found}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="sin_cos", dims=[0, -1])

    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch; states (B, T, S) become (B, T, S + angles), float32."""
        return {**batch, **{key: self._widen(batch[key], key) for key in self._angles if key in batch}}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """A new batch with angles in (-pi, pi]."""
        return {**batch, **{key: self._narrow(batch[key], key) for key in self._angles if key in batch}}

    def _widen(self, values: Tensor, key: str) -> Tensor:
        split = values.float().unbind(-1)
        others = [split[dim] for dim in range(self._widths[key]) if dim not in self._angles[key]]
        angles = [split[dim] for dim in self._angles[key]]
        return torch.stack([*others, *(a.sin() for a in angles), *(a.cos() for a in angles)], dim=-1)

    def _narrow(self, values: Tensor, key: str) -> Tensor:
        angles, width = self._angles[key], self._widths[key]
        split = iter(values.float().unbind(-1))
        found = {dim: next(split) for dim in range(width) if dim not in angles}
        sines = [next(split) for _ in angles]
        found |= {dim: torch.atan2(sine, next(split)) for dim, sine in zip(angles, sines, strict=True)}
        return torch.stack([found[dim] for dim in range(width)], dim=-1)


def _angles(config: SinCos.Config, key: str, spec: Spec) -> list[int]:
    return list(range(spec.width)) if config.dims is None else columns(config.dims, spec.width, key, "dims")
