"""Convert rotations in states and actions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Spec, Specs
from ..base import Batch, Facts, Transform
from ..embodiments import ACTION_PADDING
from ..vectors.rotation_options import ConventionConfig, check_conventions, rotation
from ..vectors.rotations import Representation, convert
from ..vectors.rotations import Rotation as Form
from ..vectors.specs import changed, refuse_normalised, vector


class Rotation(Transform):
    """Converts one rotation among the values of a state or of the action, in place: what follows moves along.

    | representation | values |
    |---|---|
    | `axis_angle` | 3, the axis times the angle in radians |
    | `quaternion` | 4, in the order that `quaternion` says |
    | `rotation_6d` | 6, the first two rows of the matrix: continuous, so good to predict (Zhou et al., 2019) |
    | `matrix` | 9, row by row |
    | `euler` | 3, in radians, about the axes that `euler` says |

    The inverse converts back, from whatever a network predicts: 6d values and matrices by Gram-Schmidt, quaternions by
    their length. What comes back is the same rotation in its canonical values: angles of axis-angle up to pi,
    quaternions with a real part of at least 0. Put it before `normalize`. Of several robots, one that has none of the
    rotation's dimensions has none of the converted ones.
    """

    class Config(ConventionConfig):
        """Convert rotations in states and actions."""

        type: Literal["rotation"]
        """Convert a rotation among the values of a state or of the action to another representation."""
        key: str
        """The state, or `action`."""
        start: int = Field(ge=0)
        """Dimension at which the rotation begins, counted from 0."""
        source: Representation
        """How it is represented in the data."""
        target: Representation
        """How the policy sees it; `rotation_6d` is a good choice."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._source, self._target = rotation(config, config.source), rotation(config, config.target)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, with the width of the key changed; raises SpecError where the rotation does not lie in it."""
        spec = vector(config.key, inputs, "key")
        if config.source == config.target:
            raise SpecError(
                f"`{config.key}` has `{config.source}` already", field="target", label="changes nothing"
            )
        check_conventions(config, {"source": config.source, "target": config.target})
        refuse_normalised(config.key, spec, "rotation", "reads radians or unit values")
        before, after = rotation(config, config.source), rotation(config, config.target)
        if config.start + before.width > spec.width:
            raise SpecError(
                f"`{before.name}` has {before.width} values, and `{config.key}` has {spec.width - config.start} from "
                f"dimension {config.start} on",
                field="start",
                source=config.key,
                label=f"`{config.key}` has {spec.width} dimensions",
                help=f"the rotation begins at {spec.width - before.width} or before",
            )
        why = f"{before.name} as {after.name}"
        return {**inputs, config.key: changed(spec, why, spec.width - before.width + after.width)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="rotation", key="action", start=0, source="axis_angle", target="rotation_6d")

    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch with the rotation converted (float32)."""
        return self._convert(batch, self._source, self._target)

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """A new batch with the rotation as in the data (float32)."""
        return self._convert(batch, self._target, self._source)

    def _convert(self, batch: Batch, source: Form, target: Form) -> dict[str, Any]:
        key, found = self.config.key, dict(batch)
        if key in batch:
            before, turned, after = self._parts(batch[key].float(), source)
            found[key] = torch.cat([before, convert(turned, source, target), after], dim=-1)
        if key == "action" and ACTION_PADDING in batch:  # at deployment too
            before, turned, after = self._parts(batch[ACTION_PADDING], source)
            missing = turned.all(-1, keepdim=True).expand(-1, target.width)
            found[ACTION_PADDING] = torch.cat([before, missing, after], dim=-1)
        return found

    def _parts(self, values: Tensor, form: Form) -> tuple[Tensor, ...]:
        """What lies before the rotation, the rotation, and what lies after it."""
        start = self.config.start
        parts: tuple[Tensor, ...] = values.split(
            [start, form.width, values.shape[-1] - start - form.width], dim=-1
        )
        return parts
