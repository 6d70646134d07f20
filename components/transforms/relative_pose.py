from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Specs
from ..base import Facts
from ..vectors.relative import ReferenceConfig, ReferenceTransform
from ..vectors.rotation_options import ConventionConfig, check_conventions, rotation_form
from ..vectors.rotations import Representation, from_matrix, to_matrix


class RelativePose(ReferenceTransform):
    """Poses in the frame of the gripper at the start of the chunk (UMI, Chi et al., 2024).

        p'_t = R_s^T (p_t - p_s)        R'_t = R_s^T R_t

    with position p_s and rotation R_s of the state. Other dimensions, such as a gripper's, stay absolute. For
    two arms, use it twice. The rotation keeps its representation; convert it with a later `rotation`. The
    inverse returns the same rotation in canonical values. A later `normalize` uses the statistics of the
    relative poses.
    """

    class Config(ReferenceConfig, ConventionConfig):
        type: Literal["relative_pose"]
        position: int | None = Field(default=0, ge=0)
        """First dimension of x, y, z in the action, counted from 0; null if only the rotation is relative."""
        rotation: int = Field(default=3, ge=0)
        """First dimension of the rotation in the action."""
        state_position: int | None = Field(default=None, ge=0)
        """First dimension of x, y, z in the state; by default as in the action."""
        state_rotation: int | None = Field(default=None, ge=0)
        """First dimension of the rotation in the state; by default as in the action."""
        representation: Representation
        """Representation of rotations, in action and state."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._form = rotation_form(config, config.representation)

    @classmethod
    def check(cls, config: Config, inputs: Specs) -> None:
        check_conventions(config, {"representation": config.representation})
        if config.position is None and config.state_position is not None:
            raise SpecError("the action has no position", field="state_position", label="unused")
        size = rotation_form(config, config.representation).width
        for key, prefix in (("action", ""), (config.state, "state_")):
            position, rotation = _places(config, prefix)
            fields = {
                name: f"{prefix}{name}" if f"{prefix}{name}" in config.model_fields_set else name
                for name in ("position", "rotation")
            }
            for name, begin, width in (("position", position, 3), ("rotation", rotation, size)):
                if begin is not None and begin + width > inputs[key].width:
                    raise SpecError(
                        f"a {name} of {width} values from dimension {begin} exceeds `{key}`, which has "
                        f"{inputs[key].width}",
                        field=fields[name],
                        source=key,
                        label=f"`{key}` has {inputs[key].width} dimensions",
                        help=f"set `{prefix}{name}` to where it begins in `{key}`",
                    )
            if position is not None and position < rotation + size and rotation < position + 3:
                raise SpecError(
                    f"position and rotation of `{key}` share dimensions",
                    field=fields["rotation"],
                    source=key,
                    label="overlaps the position",
                    help=f"the position takes {position} to {position + 2}",
                )

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="relative_pose", position=None, rotation=0, representation="axis_angle")

    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (B, H, A) relative to states (B, S)."""
        origin, frame = self._pose(state[:, None], "state_")  # (B, 1, 3) and (B, 1, 3, 3)
        position, rotation = self._pose(actions, "")
        moved = (
            None
            if position is None or origin is None
            else (frame.mT @ (position - origin)[..., None])[..., 0]
        )
        return self._replace(actions, moved, frame.mT @ rotation)

    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (B, H, A) for relative ones (B, H, A) and states (B, S)."""
        origin, frame = self._pose(state[:, None], "state_")
        position, rotation = self._pose(actions, "")
        moved = None if position is None or origin is None else origin + (frame @ position[..., None])[..., 0]
        return self._replace(actions, moved, frame @ rotation)

    def _pose(self, values: Tensor, prefix: str) -> tuple[Tensor | None, Tensor]:
        """Return positions (..., 3), if any, and rotations (..., 3, 3)."""
        position, rotation = _places(self.config, prefix)
        where = None if position is None else values[..., position : position + 3]
        return where, to_matrix(values[..., rotation : rotation + self._form.width], self._form)

    def _replace(self, actions: Tensor, moved: Tensor | None, matrix: Tensor) -> Tensor:
        changed = actions.clone()
        position, rotation = _places(self.config, "")
        if moved is not None:
            changed[..., position : position + 3] = moved
        changed[..., rotation : rotation + self._form.width] = from_matrix(matrix, self._form)
        return changed


def _places(config: RelativePose.Config, prefix: str) -> tuple[Any, int]:
    """Return the first dimensions of the position, if any, and of the rotation, in action or state."""
    position, rotation = getattr(config, f"{prefix}position"), getattr(config, f"{prefix}rotation")
    return (
        config.position if position is None else position,
        config.rotation if rotation is None else rotation,
    )
