"""Attention to cached keys and values beside float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.kernels import cached_attention as module
from policysmith.components.kernels.cached_attention import cached_attention, reference
from policysmith.components.kernels.dispatch import INTERPRETED

SHAPES = ((1, 5, 4, 1, 70, 8), (2, 3, 4, 2, 65, 6), (1, 70, 2, 2, 3, 16), (2, 1, 1, 1, 130, 40))
"""Samples, tokens, heads, groups, cached keys and width."""


def given(
    shape: tuple[int, ...], *, own: bool = True, turns: bool = True, masked: bool = True
) -> dict[str, Any]:
    samples, tokens, heads, groups, cached, width = shape
    random = torch.Generator().manual_seed(sum(shape))

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=random, dtype=torch.float64)

    angles = normal(samples, 1, tokens, width // 2)
    seen = cached + (tokens if own else 0)
    together = normal(samples, tokens, heads + 2 * groups, width)  # read as slices of one projection
    query, key, value = together.split([heads, groups, groups], dim=2)
    layers = normal(samples, 3, 2, groups, cached, width)
    return {
        "query": query,
        "key": layers[:, 1, 0],
        "value": layers[:, 1, 1],
        "own": (key, value) if own else None,
        "places": (angles.cos(), angles.sin()) if turns else None,
        "mask": normal(samples, 1, heads // groups * tokens, seen) > -0.5 if masked else None,
    }


def cast(values: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(values, tuple):
        return tuple(cast(value, device, dtype) for value in values)
    if not isinstance(values, Tensor):
        return values
    return values.to(device, dtype) if values.is_floating_point() else values.to(device)


def arguments(inputs: dict[str, Any], device: str, dtype: torch.dtype) -> dict[str, Any]:
    made = {key: cast(value, device, dtype) for key, value in inputs.items()}
    return made | {"places": cast(inputs["places"], device, torch.float32)}


def error(inputs: dict[str, Any], device: str, dtype: torch.dtype) -> float:
    """Relative error beside the reference in float64, of the inputs as rounded to the dtype."""
    rounded = arguments(inputs, device, dtype)
    exact = reference(**{key: cast(value, device, torch.float64) for key, value in rounded.items()})
    found = cached_attention(**rounded)
    assert torch.equal(found, cached_attention(**rounded))
    assert (found.shape, found.dtype) == (exact.shape, dtype)
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"own": False}, {"turns": False}, {"masked": False}], ids=str)
def test_it_is_exact_in_float32(shape: tuple[int, ...], options: dict[str, bool], device: str) -> None:
    assert error(given(shape, **options), device, torch.float32) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_half_precision_loses_roundings_alone(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    tolerance = (4.0 if INTERPRETED else 1.5) * torch.finfo(dtype).eps  # the interpreter truncates
    assert error(given(shape), device, dtype) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [(1, 51, 8, 1, 565, 256), (1, 51, 15, 5, 241, 64), (3, 51, 8, 1, 565, 256), (1, 300, 8, 1, 565, 256)],
    ids=str,
)
def test_it_is_exact_at_the_size_of_a_policy(shape: tuple[int, ...]) -> None:
    assert error(given(shape), "cuda", torch.bfloat16) < 1.5 * torch.finfo(torch.bfloat16).eps


def test_one_mask_serves_all_samples(device: str) -> None:
    inputs = arguments(given(SHAPES[1]), device, torch.float32)
    inputs["mask"] = inputs["mask"][:1]
    apart = {**inputs, "mask": inputs["mask"].expand(2, -1, -1, -1)}
    torch.testing.assert_close(cached_attention(**inputs), reference(**apart))


def test_a_mask_of_tokens_serves_all_heads(device: str) -> None:
    inputs = arguments(given(SHAPES[1]), device, torch.float32)
    inputs["mask"] = inputs["mask"][:, :, :3]
    apart = {**inputs, "mask": inputs["mask"].repeat(1, 1, 2, 1)}
    torch.testing.assert_close(cached_attention(**inputs), reference(**apart))


def test_a_query_that_sees_nothing_gathers_zeros(device: str) -> None:
    inputs = arguments(given(SHAPES[0]), device, torch.float32)
    inputs["mask"][:, :, 7] = False  # the third token of the second head
    out = cached_attention(**inputs).unflatten(-1, (4, 8))
    assert not out[0, 2, 1].any()
    torch.testing.assert_close(out.flatten(2), reference(**inputs))


def test_large_scores_stay_finite(device: str) -> None:
    inputs = arguments(given(SHAPES[0]), device, torch.float32)
    torch.testing.assert_close(
        cached_attention(**inputs, scale=300.0), reference(**inputs, scale=300.0), rtol=1e-3, atol=1e-3
    )


def test_shapes_must_fit(device: str) -> None:
    inputs = arguments(given(SHAPES[1]), device, torch.float32)
    key, value = inputs["own"]
    cosine, sine = inputs["places"]
    for changed in (
        {"query": inputs["query"][:, :, :3]},
        {"query": inputs["query"][..., :5]},
        {"key": inputs["key"][:1]},
        {"value": inputs["value"].half()},
        {"value": inputs["value"][:, :, 1:]},
        {"own": (key, value[:, :1])},
        {"places": (cosine, sine.double())},
        {"mask": inputs["mask"][..., 1:]},
        {"mask": inputs["mask"].expand(-1, 2, -1, -1)},
    ):
        with pytest.raises(ValueError, match="do not fit"):
            cached_attention(**{**inputs, **changed})


def test_it_is_a_sound_operator(device: str) -> None:
    inputs = arguments(given(SHAPES[1]), device, torch.float32)
    values = (
        inputs["query"],
        inputs["key"],
        inputs["value"],
        *inputs["own"],
        *inputs["places"],
        inputs["mask"],
        0.5,
    )
    torch.library.opcheck(module._forward, values, test_utils=("test_schema", "test_faketensor"))
