"""Poses relative to the pose of the state."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Specs
from ..base import Facts
from ..vectors.relative import ReferenceConfig, ReferenceTransform
from ..vectors.rotation_options import ConventionConfig, check_conventions, rotation
from ..vectors.rotations import Representation, from_matrix, to_matrix


class RelativePose(ReferenceTransform):
    """Tells the pose in every action of a chunk in the frame of the gripper at the chunk's begin (UMI, Chi et al., 2024).

        p'_t = R_s^T (p_t - p_s)        R'_t = R_s^T R_t

    with position p_s and rotation R_s of the state. Other dimensions, such as a gripper's, stay absolute. For two arms,
    use it twice. The rotation keeps its representation; convert it by `rotation` after this one. What comes back is the
    same rotation in its canonical values. A `normalize` that follows uses the statistics of the relative poses.
    """

    class Config(ReferenceConfig, ConventionConfig):
        """Poses relative to the pose of the state."""

        type: Literal["relative_pose"]
        """Predict poses in the frame of the gripper at the begin of the chunk."""
        position: int | None = Field(default=0, ge=0)
        """Dimension of the action at which x, y, z begin, counted from 0; null where only the rotation is relative."""
        rotation: int = Field(default=3, ge=0)
        """Dimension of the action at which the rotation begins."""
        state_position: int | None = Field(default=None, ge=0)
        """The same of the state; by default as in the action."""
        state_rotation: int | None = Field(default=None, ge=0)
        """The same of the state; by default as in the action."""
        representation: Representation
        """How rotations are represented, in action and state."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._form = rotation(config, config.representation)

    @classmethod
    def check(cls, config: Config, inputs: Specs) -> None:
        check_conventions(config, {"representation": config.representation})
        if config.position is None and config.state_position is not None:
            raise SpecError("the action has no position", field="state_position", label="is not used")
        size = rotation(config, config.representation).width
        for key, prefix in (("action", ""), (config.state, "state_")):
            position, turn = _places(config, prefix)
            fields = {
                name: f"{prefix}{name}" if f"{prefix}{name}" in config.model_fields_set else name
                for name in ("position", "rotation")
            }
            for name, begin, width in (("position", position, 3), ("rotation", turn, size)):
                if begin is not None and begin + width > inputs[key].width:
                    raise SpecError(
                        f"a {name} of {width} values from dimension {begin} on is not in `{key}`, which has "
                        f"{inputs[key].width}",
                        field=fields[name],
                        source=key,
                        label=f"`{key}` has {inputs[key].width} dimensions",
                        help=f"set `{prefix}{name}` to where it begins in `{key}`",
                    )
            if position is not None and position < turn + size and turn < position + 3:
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
        """Actions (B, H, A) and states (B, S) -> (B, H, A)."""
        origin, frame = self._pose(state[:, None], "state_")  # (B, 1, 3) and (B, 1, 3, 3)
        position, turn = self._pose(actions, "")
        moved = (
            None
            if position is None or origin is None
            else (frame.mT @ (position - origin)[..., None])[..., 0]
        )
        return self._replace(actions, moved, frame.mT @ turn)

    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Relative actions (B, H, A) and states (B, S) -> (B, H, A)."""
        origin, frame = self._pose(state[:, None], "state_")
        position, turn = self._pose(actions, "")
        moved = None if position is None or origin is None else origin + (frame @ position[..., None])[..., 0]
        return self._replace(actions, moved, frame @ turn)

    def _pose(self, values: Tensor, prefix: str) -> tuple[Tensor | None, Tensor]:
        """Positions (..., 3), where there are any, and rotations (..., 3, 3)."""
        position, turn = _places(self.config, prefix)
        where = None if position is None else values[..., position : position + 3]
        return where, to_matrix(values[..., turn : turn + self._form.width], self._form)

    def _replace(self, actions: Tensor, moved: Tensor | None, matrix: Tensor) -> Tensor:
        changed = actions.clone()
        position, turn = _places(self.config, "")
        if moved is not None:
            changed[..., position : position + 3] = moved
        changed[..., turn : turn + self._form.width] = from_matrix(matrix, self._form)
        return changed


def _places(config: RelativePose.Config, prefix: str) -> tuple[Any, int]:
    """Where the position begins, if there is one, and the rotation, in the action or in the state."""
    position, turn = getattr(config, f"{prefix}position"), getattr(config, f"{prefix}rotation")
    return config.position if position is None else position, config.rotation if turn is None else turn
