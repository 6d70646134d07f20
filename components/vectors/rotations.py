"""Rotations in five representations, in float32 or float64, with finite gradients everywhere.

    convert(values, RotationForm("axis_angle"), RotationForm("euler", "XYZ"))

| representation | values | meaning |
|---|---|---|
| `axis_angle` | 3 | unit axis times angle, in radians |
| `quaternion` | 4 | order `wxyz` or `xyzw` |
| `rotation_6d` | 6 | first two rows of the matrix (Zhou et al., "On the Continuity of Rotation Representations", 2019) |
| `matrix` | 9 | row by row; maps vectors of the rotated frame to the fixed one |
| `euler` | 3 | three axes, in radians: `XYZ` about axes of the rotated frame, `xyz` about fixed ones (as in SciPy) |

Results are canonical: quaternions have a real part of at least 0, angles of axis-angle are at most pi, the
first and last Euler angle lie in (-pi, pi], the middle one in [-pi/2, pi/2], or in [0, pi] if the first axis
is also the last. Predicted 6d values and matrices are projected to rotations by Gram-Schmidt, quaternions by
their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Representation = Literal["axis_angle", "quaternion", "rotation_6d", "matrix", "euler"]

WIDTHS: dict[str, int] = {"axis_angle": 3, "quaternion": 4, "rotation_6d": 6, "matrix": 9, "euler": 3}
_LOST = 1e-15  # its square still differs from 0 in float32
_SMALL = 1e-8  # squared length below which a series replaces a quotient; exact there in float32 and float64


@dataclass(frozen=True)
class RotationForm:
    """Representation; `order` is that of a quaternion's values, or of the axes of Euler angles."""

    name: Representation
    order: str = ""

    @property
    def width(self) -> int:
        """Number of values."""
        return WIDTHS[self.name]


def convert(values: Tensor, source: RotationForm, target: RotationForm) -> Tensor:
    """Convert rotations (..., source.width) to (..., target.width)."""
    return from_matrix(to_matrix(values, source), target)


def to_matrix(values: Tensor, rotation: RotationForm) -> Tensor:
    """Convert rotations (..., width) to matrices (..., 3, 3)."""
    if rotation.name == "axis_angle":
        return _from_axis_angle(values)
    if rotation.name == "quaternion":
        return _from_quaternion(values if rotation.order == "wxyz" else values.roll(1, -1))
    if rotation.name == "euler":
        return _from_euler(values, rotation.order)
    return orthonormal(values[..., :3], values[..., 3:6])


def from_matrix(matrix: Tensor, rotation: RotationForm) -> Tensor:
    """Convert matrices (..., 3, 3) to rotations (..., width)."""
    if rotation.name == "axis_angle":
        return _axis_angle(_quaternion(matrix))
    if rotation.name == "quaternion":
        quaternion = _quaternion(matrix)
        return quaternion if rotation.order == "wxyz" else quaternion.roll(-1, -1)
    if rotation.name == "euler":
        return _euler(matrix, rotation.order)
    return matrix.flatten(-2)[..., : rotation.width]


def orthonormal(first: Tensor, second: Tensor) -> Tensor:
    """Build matrices (..., 3, 3) whose first two rows are vectors (..., 3) after Gram-Schmidt.

    The third row is their cross product.
    """
    x = F.normalize(first, dim=-1)
    y = F.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-2)


def _from_axis_angle(values: Tensor) -> Tensor:
    """Apply Rodrigues' formula: I + sin(a) / a K + (1 - cos(a)) / a^2 K^2, with K the cross product."""
    square = values.square().sum(-1)[..., None, None]
    small = square < _SMALL
    angle = torch.where(small, 1.0, square).sqrt()
    first = torch.where(small, 1.0 - square / 6.0, angle.sin() / angle)
    half = (0.5 * angle).sin() / angle
    second = torch.where(small, 0.5 - square / 24.0, 2.0 * half.square())
    x, y, z = values.unbind(-1)
    zero = torch.zeros_like(x)
    product = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*x.shape, 3, 3)
    eye = torch.eye(3, dtype=values.dtype, device=values.device)
    return eye + first * product + second * (product @ product)


def _from_quaternion(values: Tensor) -> Tensor:
    """Convert quaternions (..., 4), real part first and of any length but 0, to matrices."""
    w, x, y, z = F.normalize(values, dim=-1).unbind(-1)
    rows = [
        1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y),
        2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x),
        2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*w.shape, 3, 3)


def _quaternion(matrix: Tensor) -> Tensor:
    """Convert matrices to quaternions.

    The products 4 q q^T are linear in the matrix; the row of the largest component is far from 0 for any
    angle.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    entries = [
        1.0 + a + e + i, h - f, c - g, d - b,
        h - f, 1.0 + a - e - i, b + d, c + g,
        c - g, b + d, 1.0 - a + e - i, f + h,
        d - b, c + g, f + h, 1.0 - a - e + i,
    ]  # fmt: skip
    products = torch.stack(entries, dim=-1).reshape(*a.shape, 4, 4)
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    quaternion = F.normalize(products.gather(-2, index).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., :1] < 0.0, -quaternion, quaternion)


def _axis_angle(quaternion: Tensor) -> Tensor:
    """Convert unit quaternions (..., 4) with a real part of at least 0 to axis times angle."""
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    square = vector.square().sum(-1, keepdim=True)  # sin^2 of half the angle
    small = square < _SMALL
    sine = torch.where(small, 1.0, square).sqrt()
    factor = torch.where(small, 2.0 + square / 3.0, 2.0 * torch.atan2(sine, w) / sine)
    return vector * factor


def _axes(order: str) -> tuple[int, int, int, float]:
    """Return axes i, j of the first two rotations, the third axis k, and the sign of the order i, j, k.

    Axes are those of the rotated frame; the sign is positive for a right-handed order.
    """
    i, j = ("XYZ".index(axis) for axis in order[:2])
    return i, j, 3 - i - j, 1.0 if (j - i) % 3 == 1 else -1.0


def _from_euler(angles: Tensor, order: str) -> Tensor:
    """Return the product of three elementary rotations; about fixed axes they apply in the opposite order."""
    if order.islower():
        return _from_euler(angles.flip(-1), order[::-1].upper())
    eye = torch.eye(3, dtype=angles.dtype, device=angles.device)
    first, second, third = (
        _from_axis_angle(angle[..., None] * eye["XYZ".index(axis)])
        for axis, angle in zip(order, angles.unbind(-1), strict=True)
    )
    return first @ second @ third


def _angle(y: Tensor, x: Tensor) -> Tensor:
    """Return the angle of (x, y), or 0 without a gradient if its length vanishes when squared."""
    lost = y.abs() + x.abs() < _LOST
    return torch.atan2(torch.where(lost, 0.0, y), torch.where(lost, 1.0, x))


def _euler(matrix: Tensor, order: str) -> Tensor:
    """Read off the first angle, undo its rotation, and read the other two off the rest.

    The three always reproduce the matrix, also in gimbal lock, where the first one is arbitrary.
    """
    if order.islower():
        return _euler(matrix, order[::-1].upper()).flip(-1)
    i, j, k, sign = _axes(order)
    repeated = order[0] == order[2]
    if repeated:
        first = _angle(matrix[..., j, i], -sign * matrix[..., k, i])
    else:
        first = _angle(-sign * matrix[..., j, k], matrix[..., k, k])
    cosine, sine = first.cos()[..., None], sign * first.sin()[..., None]
    row_j = cosine * matrix[..., j, :] + sine * matrix[..., k, :]
    row_k = cosine * matrix[..., k, :] - sine * matrix[..., j, :]
    if repeated:
        second = _angle(-sign * row_k[..., i], matrix[..., i, i])
        third = _angle(-sign * row_j[..., k], row_j[..., j])
    else:
        second = _angle(sign * matrix[..., i, k], row_k[..., k])
        third = _angle(sign * row_j[..., i], row_j[..., j])
    return torch.stack([first, second, third], dim=-1)
