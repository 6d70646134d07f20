from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Batch, Facts, Transform
from ..vectors.specs import changed_spec, refuse_normalized_vector, resolve_dims, select_vectors

_STATES = (Kind.STATE,)


class SinCos(Transform):
    """Sines and cosines in place of angles of the state, in radians.

    They follow all other dimensions, first the sines, then the cosines: S values become S + angles. An angle
    just below pi then resembles one just above -pi. The inverse returns angles in (-pi, pi]. States only,
    because full turns of actions would be lost.
    """

    class Config(PartConfig):
        type: Literal["sin_cos"]
        keys: list[str] | None = Field(default=None, min_length=1)
        """States to change; by default all."""
        dims: list[int] | None = Field(default=None, min_length=1)
        """Dimensions that are angles; by default all. -1 is the last."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._angles = {
            key: _angles(config, key, spec)
            for key, spec in select_vectors(config.keys, inputs, _STATES).items()
        }
        self._widths = {key: inputs[key].width for key in self._angles}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs with wider states; raise SpecError for an unknown key or normalized values."""
        found = {}
        for key, spec in select_vectors(config.keys, inputs, _STATES).items():
            refuse_normalized_vector(key, spec, "sin_cos", "reads radians")
            count = len(_angles(config, key, spec))
            found[key] = changed_spec(spec, f"{count} angles as sine and cosine", spec.width + count)
        return {**inputs, **found}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="sin_cos", dims=[0, -1])

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with states (B, T, S + angles), float32, for states (B, T, S)."""
        return {**batch, **{key: self._widen(batch[key], key) for key in self._angles if key in batch}}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with angles in (-pi, pi]."""
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
    return (
        list(range(spec.width)) if config.dims is None else resolve_dims(config.dims, spec.width, key, "dims")
    )
