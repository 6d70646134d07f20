from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Spec, Specs
from ..base import Batch, Facts, Transform
from ..embodiments import ACTION_PADDING
from ..vectors.rotation_options import ConventionConfig, check_conventions, rotation_form
from ..vectors.rotations import Representation, RotationForm, convert
from ..vectors.specs import changed_spec, find_vector, refuse_normalized_vector


class RotationTransform(Transform):
    """Conversion of one rotation in a state or in the action to another representation, in place.

    | representation | values |
    |---|---|
    | `axis_angle` | 3, the axis times the angle in radians |
    | `quaternion` | 4, in the order given by `quaternion` |
    | `rotation_6d` | 6, the first two rows of the matrix: continuous, so good to predict (Zhou et al., 2019) |
    | `matrix` | 9, row by row |
    | `euler` | 3, in radians, about the axes given by `euler` |

    Later dimensions move along. The inverse converts any prediction back: 6d values and matrices by
    Gram-Schmidt, quaternions by their length. It returns the same rotation in canonical values: angles of
    axis-angle up to pi, quaternions with a real part of at least 0. Must precede `normalize`. With several
    robots, a robot that lacks the dimensions of the rotation also lacks those of the result.
    """

    class Config(ConventionConfig):
        type: Literal["rotation"]
        key: str
        """State, or `action`."""
        start: int = Field(ge=0)
        """First dimension of the rotation, counted from 0."""
        source: Representation
        """Representation in the data."""
        target: Representation
        """Representation that the policy sees; `rotation_6d` is a good choice."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._source, self._target = (
            rotation_form(config, config.source),
            rotation_form(config, config.target),
        )

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs at the new width of the key; raise SpecError if the rotation exceeds it."""
        spec = find_vector(config.key, inputs, "key")
        if config.source == config.target:
            raise SpecError(
                f"`{config.key}` is already `{config.source}`", field="target", label="changes nothing"
            )
        check_conventions(config, {"source": config.source, "target": config.target})
        refuse_normalized_vector(config.key, spec, "rotation", "reads radians or unit values")
        before, after = rotation_form(config, config.source), rotation_form(config, config.target)
        if config.start + before.width > spec.width:
            raise SpecError(
                f"`{before.name}` has {before.width} values, and `{config.key}` has {spec.width - config.start} from "
                f"dimension {config.start}",
                field="start",
                source=config.key,
                label=f"`{config.key}` has {spec.width} dimensions",
                help=f"start the rotation at {spec.width - before.width} or before"
                if spec.width >= before.width
                else "choose a `source` with fewer values, or a wider key",
            )
        why = f"{before.name} as {after.name}"
        return {**inputs, config.key: changed_spec(spec, why, spec.width - before.width + after.width)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="rotation", key="action", start=0, source="axis_angle", target="rotation_6d")

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the converted rotation (float32)."""
        return self._convert(batch, self._source, self._target)

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the rotation as in the data (float32)."""
        return self._convert(batch, self._target, self._source)

    def _convert(self, batch: Batch, source: RotationForm, target: RotationForm) -> dict[str, Any]:
        key, found = self.config.key, dict(batch)
        if key in batch:
            before, turned, after = self._parts(batch[key].float(), source)
            found[key] = torch.cat([before, convert(turned, source, target), after], dim=-1)
        if key == "action" and ACTION_PADDING in batch:  # at deployment too
            before, turned, after = self._parts(batch[ACTION_PADDING], source)
            missing = turned.all(-1, keepdim=True).expand(-1, target.width)
            found[ACTION_PADDING] = torch.cat([before, missing, after], dim=-1)
        return found

    def _parts(self, values: Tensor, form: RotationForm) -> tuple[Tensor, ...]:
        """Return the values before the rotation, the rotation, and the values after it."""
        start = self.config.start
        parts: tuple[Tensor, ...] = values.split(
            [start, form.width, values.shape[-1] - start - form.width], dim=-1
        )
        return parts
