"""Options that say in which convention the rotations of a dataset are written."""

from __future__ import annotations

from typing import Literal

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from .rotations import Representation, Rotation

Euler = Literal[
    "XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX", "XYX", "XZX", "YXY", "YZY", "ZXZ", "ZYZ",
    "xyz", "xzy", "yxz", "yzx", "zxy", "zyx", "xyx", "xzx", "yxy", "yzy", "zxz", "zyz",
]  # fmt: skip


class ConventionConfig(PartConfig):
    """Options of transforms that read rotations."""

    quaternion: Literal["wxyz", "xyzw"] | None = None
    """Order of a quaternion's values, needed where there is one: `wxyz` (MuJoCo) or `xyzw` (ROS, SciPy)."""
    euler: Euler | None = None
    """Axes of Euler angles, needed where there are any: `XYZ` turns about those of the turned frame, `xyz` about fixed ones (roll, pitch and yaw)."""


def rotation(config: ConventionConfig, name: Representation) -> Rotation:
    """A representation in the convention of the options."""
    order = {"quaternion": config.quaternion, "euler": config.euler}.get(name)
    return Rotation(name, order or "")


def check_conventions(config: ConventionConfig, used: dict[str, Representation]) -> None:
    """Raises SpecError for a convention that is missing, or not used; `used` holds the options that name representations."""
    examples = {"quaternion": "`wxyz` or `xyzw`", "euler": "its axes, such as `XYZ` or `xyz`"}
    for name, example in examples.items():
        option = next((option for option, value in used.items() if value == name), None)
        given = getattr(config, name) is not None
        if option is None and given:
            raise SpecError(
                f"there is no {name} here", field=name, label="is not used", help=f"remove `{name}`"
            )
        if option is not None and not given:
            raise SpecError(
                f"`{name}` is missing: there are several conventions",
                field=option,
                label="of which convention?",
                help=f"add `{name}:` with {example}",
            )
