"""Options for the conventions of rotations in a dataset."""

from __future__ import annotations

from typing import Literal

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from .rotations import Representation, RotationForm

Euler = Literal[
    "XYZ", "XZY", "YXZ", "YZX", "ZXY", "ZYX", "XYX", "XZX", "YXY", "YZY", "ZXZ", "ZYZ",
    "xyz", "xzy", "yxz", "yzx", "zxy", "zyx", "xyx", "xzx", "yxy", "yzy", "zxz", "zyz",
]  # fmt: skip


class ConventionConfig(PartConfig):
    """Options of transforms that read rotations."""

    quaternion: Literal["wxyz", "xyzw"] | None = None
    """Order of the values of a quaternion, required if there is one: `wxyz` (MuJoCo) or `xyzw` (ROS, SciPy)."""
    euler: Euler | None = None
    """Axes of Euler angles, required if there are any: `XYZ` rotates about the axes of the rotated frame, `xyz` about fixed ones (roll, pitch and yaw)."""


def rotation_form(config: ConventionConfig, name: Representation) -> RotationForm:
    """Return a representation in the convention of the options."""
    order = {"quaternion": config.quaternion, "euler": config.euler}.get(name)
    return RotationForm(name, order or "")


def check_conventions(config: ConventionConfig, used: dict[str, Representation]) -> None:
    """Raise SpecError for a missing or unused convention; `used` are options that name representations."""
    examples = {"quaternion": "`wxyz` or `xyzw`", "euler": "its axes, such as `XYZ` or `xyz`"}
    for name, example in examples.items():
        option = next((option for option, value in used.items() if value == name), None)
        given = getattr(config, name) is not None
        if option is None and given:
            raise SpecError(
                f"`{name}` is set, but no rotation uses it",
                field=name,
                label="unused",
                help=f"remove `{name}`",
            )
        if option is not None and not given:
            raise SpecError(
                f"`{name}` is required, because conventions differ",
                field=option,
                label="unknown convention",
                help=f"add `{name}:` with {example}",
            )
