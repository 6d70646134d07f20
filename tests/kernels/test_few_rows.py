"""Products of few rows beside float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policysmith.components.kernels import few_rows as module
from policysmith.components.kernels.dispatch import INTERPRETED
from policysmith.components.kernels.few_rows import gated_linear, linear_parts, summed_norm

SHAPES = ((1, 5, 200, 24), (2, 7, 64, 128), (1, 1, 3, 70))
"""Samples, tokens, and numbers before and after the product."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def normal(*sizes: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    random = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(sizes, generator=random).to(device, dtype)


def assert_near(found: Tensor, exact: Tensor, dtype: torch.dtype, factor: float = 1.5) -> None:
    """Check the relative error beside that of a rounding; the interpreter truncates bfloat16."""
    assert (found.shape, found.dtype) == (exact.shape, dtype)
    error = float((found.double() - exact).norm() / exact.norm())
    assert error < (3.0 if INTERPRETED else 1.0) * factor * max(torch.finfo(dtype).eps, 1e-6)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_parts_sum_to_the_product(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    *outer, inner, columns = shape
    values, weight = normal(*outer, inner, dtype=dtype, device=device), normal(columns, inner, dtype=dtype)
    weight = weight.to(device)
    parts = linear_parts(values, weight)
    assert parts.dtype == torch.float32
    assert len(parts) == -(-inner // module.INNER), "a share is one tile where the GPU has room"
    assert torch.equal(parts, linear_parts(values, weight))
    assert_near(parts.sum(0), F.linear(values.double(), weight.double()), torch.float32)


@DTYPES
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gated_product(shape: tuple[int, ...], activation: Any, dtype: torch.dtype, device: str) -> None:
    *outer, inner, columns = shape
    values, both = normal(*outer, inner, dtype=dtype, device=device), normal(2 * columns, inner, dtype=dtype)
    both = both.to(device) / inner**0.5
    gate, up = F.linear(values.double(), both.double()).chunk(2, -1)
    acted = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    assert_near(gated_linear(values, both, activation), acted * up, dtype, factor=3.0)


@DTYPES
@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize(
    "extras", [(), ("gate", "scale"), ("bias", "weight", "shift", "scale", "gate")], ids=str
)
def test_the_norm_behind_a_product(
    rms: bool, extras: tuple[str, ...], dtype: torch.dtype, device: str
) -> None:
    residual, parts = normal(2, 5, 24, dtype=dtype, device=device), normal(3, 2, 5, 24, device=device)
    sizes = {"bias": (24,), "weight": (24,), "gate": (2, 72), "shift": (2, 72), "scale": (2, 72)}
    given = {name: normal(*sizes[name], dtype=dtype, device=device)[..., -24:] for name in extras}
    hidden, out = summed_norm(residual, parts, **given, rms=rms, eps=1e-3)
    known = {name: value.double() for name, value in given.items()}
    branch = parts.double().sum(0) + known.get("bias", 0.0)
    exact = residual.double() + (known["gate"][:, None] * branch if "gate" in known else branch)
    assert_near(hidden, exact, dtype)
    centered = exact if rms else exact - exact.mean(-1, keepdim=True)
    wanted = centered * (centered.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * known.get("weight", 1.0)
    wanted = wanted * (1.0 + known["scale"][:, None]) if "scale" in known else wanted
    wanted = wanted + known["shift"][:, None] if "shift" in known else wanted
    assert_near(out, wanted, dtype, factor=2.0)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 51, 2048, 1024), (1, 51, 4096, 1024), (1, 64, 1024, 4096)], ids=str)
def test_products_at_the_size_of_a_policy(shape: tuple[int, ...]) -> None:
    *outer, inner, columns = shape
    values, weight = (normal(*x, inner, dtype=torch.bfloat16, device="cuda") for x in (outer, (columns,)))
    assert_near(
        linear_parts(values, weight).sum(0), F.linear(values.double(), weight.double()), torch.float32
    )
    test_a_gated_product(shape, "gelu_tanh", torch.bfloat16, "cuda")


def test_what_does_not_fit_is_refused(device: str) -> None:
    values, weight = normal(1, 5, 8, device=device), normal(6, 8, device=device)
    with pytest.raises(ValueError, match="up to 64 rows"):
        linear_parts(normal(1, 65, 8, device=device), weight)
    with pytest.raises(ValueError, match="one dtype"):
        linear_parts(values, weight.half())
    with pytest.raises(ValueError, match="one dtype"):
        gated_linear(values, weight[:, :7], "silu")
    with pytest.raises(ValueError, match="cannot share"):
        gated_linear(values, weight[:5], "silu")
    with pytest.raises(ValueError, match="do not fit"):
        summed_norm(normal(1, 4, 6, device=device), linear_parts(values, weight), rms=True, eps=1e-6)


def test_they_are_sound_operators(device: str) -> None:
    values, weight = normal(2, 5, 70, device=device), normal(6, 70, device=device)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(module._parts, (values, weight), test_utils=checks)
    torch.library.opcheck(module._gated, (values, weight, True), test_utils=checks)
    residual, parts = normal(2, 5, 6, device=device), linear_parts(values, weight)
    extras = (None, None, None, normal(2, 6, device=device), None, True, 1e-6)
    torch.library.opcheck(module._norm, (residual, parts, *extras), test_utils=checks)
