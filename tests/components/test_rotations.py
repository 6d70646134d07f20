"""Rotations against the matrix exponential, the Hamilton product and each other, in double precision."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from policysmith.components.vectors.rotations import (
    RotationForm,
    convert,
    from_matrix,
    orthonormal,
    to_matrix,
)

ORDERS = [
    "".join(axes)
    for letters in ("XYZ", "xyz")
    for axes in itertools.product(letters, repeat=3)
    if axes[0] != axes[1] and axes[1] != axes[2]
]
FORMS = [
    RotationForm("axis_angle"),
    RotationForm("quaternion", "wxyz"),
    RotationForm("quaternion", "xyzw"),
    RotationForm("rotation_6d"),
    RotationForm("matrix"),
    *(RotationForm("euler", order) for order in ORDERS),
]
VECTOR = RotationForm("axis_angle")
components = st.floats(-1, 1).filter(lambda value: abs(value) > 1e-3)
axes = st.tuples(components, components, components)
special = st.sampled_from([0.0, 1e-300, 1e-12, 1e-6, 1e-4, math.pi / 2, math.pi - 1e-7, math.pi])
angles = st.one_of(st.floats(0, math.pi), special)


def skew(vector: Tensor) -> Tensor:
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def exponential(vector: Tensor) -> Tensor:
    """Return matrices of rotation vectors by the series of the exponential (torch's is exact to 1e-11 only)."""
    product = skew(vector.double())
    total = term = torch.eye(3, dtype=torch.float64).expand_as(product)
    for order in range(1, 40):
        term = term @ product / order
        total = total + term
    return total


def randoms(count: int = 200, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return matrices (count, 3, 3) from the whole group."""
    vectors = torch.randn(count, 3, dtype=torch.float64)
    length = torch.rand(count, 1, dtype=torch.float64) * math.pi
    return exponential(vectors / vectors.norm(dim=-1, keepdim=True) * length).to(dtype)


def axis_times_angle(axis: tuple[float, float, float], angle: float) -> Tensor:
    unit = torch.tensor(axis, dtype=torch.float64)
    return unit / unit.norm() * angle


def distance(first: Tensor, second: Tensor) -> float:
    """Largest difference of matrices."""
    return (first.double() - second.double()).abs().max().item()


# --- against definitions -----------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(axis=axes, angle=angles)
def test_axis_angle_is_the_matrix_exponential(axis: Any, angle: float) -> None:
    vector = axis_times_angle(axis, angle)
    matrix = exponential(vector)
    assert distance(to_matrix(vector, VECTOR), matrix) < 1e-14
    back = from_matrix(matrix, VECTOR)
    assert back.norm() <= math.pi + 1e-12
    sign = 1.0 if angle < math.pi - 1e-3 or back @ vector > 0 else -1.0  # half a turn has two axes
    torch.testing.assert_close(sign * back, vector, atol=1e-7, rtol=1e-7)


def test_a_quaternion_turns_vectors_by_the_hamilton_product() -> None:
    def product(p: Tensor, q: Tensor) -> Tensor:
        w = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdim=True)
        cross = torch.linalg.cross(p[..., 1:], q[..., 1:])
        return torch.cat([w, p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + cross], -1)

    quaternions = torch.randn(100, 4, dtype=torch.float64)
    vectors = torch.randn(100, 3, dtype=torch.float64)
    unit = quaternions / quaternions.norm(dim=-1, keepdim=True)
    pure = torch.cat([torch.zeros(100, 1, dtype=torch.float64), vectors], -1)
    conjugate = unit * torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    expected = product(product(unit, pure), conjugate)[:, 1:]
    matrix = to_matrix(quaternions, RotationForm("quaternion", "wxyz"))
    torch.testing.assert_close((matrix @ vectors[..., None])[..., 0], expected, atol=1e-12, rtol=0)
    other = to_matrix(quaternions[:, [1, 2, 3, 0]], RotationForm("quaternion", "xyzw"))
    assert torch.equal(matrix, other)


def test_euler_angles_are_products_of_elementary_rotations() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    for order in ORDERS:
        angles = (torch.rand(50, 3, dtype=torch.float64) - 0.5) * 2 * math.pi
        turns = [exponential(angles[:, i : i + 1] * eye["xyz".index(a.lower())]) for i, a in enumerate(order)]
        expected = turns[0] @ turns[1] @ turns[2] if order.isupper() else turns[2] @ turns[1] @ turns[0]
        form = RotationForm("euler", order)
        assert distance(to_matrix(angles, form), expected) < 1e-14, order
        found = from_matrix(expected, form)
        assert found[:, [0, 2]].abs().max() <= math.pi, order
        low, high = (0.0, math.pi) if order[0] == order[2] else (-math.pi / 2, math.pi / 2)
        assert low <= found[:, 1].min(), order
        assert found[:, 1].max() <= high, order
        assert distance(to_matrix(found, form), expected) < 1e-14, order


def test_euler_angles_agree_with_scipy() -> None:
    transform = pytest.importorskip("scipy.spatial.transform")
    matrix = randoms()
    theirs = transform.Rotation.from_matrix(matrix.numpy())
    for order in ORDERS:
        ours = from_matrix(matrix, RotationForm("euler", order))
        torch.testing.assert_close(ours, torch.tensor(theirs.as_euler(order)), atol=1e-9, rtol=0)


# --- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_matrices_come_back(dtype: torch.dtype, error: float) -> None:
    for form in FORMS:
        matrix = randoms(dtype=dtype)
        values = from_matrix(matrix, form)
        assert values.shape == (200, form.width), form
        assert values.dtype == dtype, form
        assert distance(to_matrix(values, form), matrix) < error, form
        assert distance(to_matrix(convert(values, form, form), form), matrix) < error, form


@example(form=VECTOR, axis=(1.0, 0.0, 0.0), angle=1e-20)  # its square is 0 where denormal numbers are flushed
@settings(max_examples=300)
@given(
    form=st.sampled_from(FORMS),
    axis=st.one_of(axes, st.sampled_from([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)])),
    angle=angles,
)
def test_hard_angles_come_back_in_float32_with_finite_gradients(
    form: RotationForm, axis: Any, angle: float
) -> None:
    vector = axis_times_angle(axis, angle)
    matrix = exponential(vector).float().requires_grad_()
    values = from_matrix(matrix, form)
    back = to_matrix(values, form)
    assert distance(back.detach(), matrix.detach()) < 2e-6
    (gradient,) = torch.autograd.grad(values.square().sum() + back.square().sum(), matrix)
    assert gradient.isfinite().all()
    turned = vector.float().requires_grad_()
    (gradient,) = torch.autograd.grad(convert(turned, VECTOR, form).square().sum(), turned)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-4])
def test_gimbal_lock_keeps_the_rotation(noise: float) -> None:
    for order in ORDERS:
        form, half = RotationForm("euler", order), math.pi / 2
        locked = torch.tensor([0.0, math.pi] if order[0] == order[2] else [-half, half])
        angles = torch.rand(2, 100, 3) * 6 - 3
        angles[..., 1] = locked[:, None] + noise
        matrix = to_matrix(angles, form)
        assert distance(to_matrix(from_matrix(matrix, form), form), matrix) < 2e-6, order


def test_opposite_quaternions_of_any_length_are_the_same_rotation() -> None:
    form = RotationForm("quaternion", "wxyz")
    quaternions = torch.randn(100, 4, dtype=torch.float64)
    first = to_matrix(quaternions, form)
    assert distance(first, to_matrix(-3.0 * quaternions, form)) < 1e-14
    canonical = from_matrix(first, form)
    assert (canonical[:, 0] >= 0.0).all()
    torch.testing.assert_close(canonical.norm(dim=-1), torch.ones(100, dtype=torch.float64))


def test_composition_is_kept() -> None:
    first, second = randoms(), randoms().flip(0)
    for form in FORMS:
        product = to_matrix(from_matrix(first, form), form) @ to_matrix(from_matrix(second, form), form)
        assert distance(product, first @ second) < 1e-12


# --- predictions -------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.0, 0.3), width=st.sampled_from([6, 9]))
def test_noisy_predictions_become_rotations(seed: int, noise: float, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = randoms(20)
    flat = matrix.flatten(-2)[..., :width]
    noisy = flat * (1.0 + noise) + noise * torch.randn(flat.shape, generator=generator, dtype=torch.float64)
    found = to_matrix(noisy, RotationForm("rotation_6d" if width == 6 else "matrix"))
    assert distance(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3)) < 1e-12
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(20, dtype=torch.float64))
    rows = noisy.unflatten(-1, (-1, 3))
    q, r = torch.linalg.qr(rows[:, :2].mT)  # Gram-Schmidt, up to signs
    expected = (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT
    torch.testing.assert_close(found[:, :2], expected, atol=1e-9, rtol=0)


def test_gradients_are_right_and_finite_where_a_network_predicts_nothing() -> None:
    values = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: orthonormal(v[..., :3], v[..., 3:]), values)
    for form in (VECTOR, RotationForm("quaternion", "wxyz"), RotationForm("euler", "XYZ")):
        away = from_matrix(randoms(5), form).requires_grad_()
        assert torch.autograd.gradcheck(lambda v, form=form: convert(v, form, RotationForm("matrix")), away)
    matrix = randoms(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: from_matrix(m, VECTOR), matrix)
    nothing = torch.zeros(2, 6, requires_grad=True)
    to_matrix(nothing, RotationForm("rotation_6d")).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()
