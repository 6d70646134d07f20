"""Noisy actions, embedded time and masked error beside float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.kernels import flow_matching as module
from policysmith.components.kernels.flow_matching import (
    masked_mse,
    masked_mse_reference,
    noisy_actions,
    noisy_actions_reference,
)

SHAPES = ((3, 5, 7), (1, 1, 3), (2, 40, 30))


def drawn(shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Actions, NaN where they are padding, noise, level and padding."""
    is_pad = torch.rand(shape) < 0.3
    is_pad[0, 0, 0] = False
    actions = torch.randn(shape).masked_fill(is_pad, float("nan"))
    return tuple(x.to(device) for x in (actions, torch.randn(shape), torch.rand(shape[0]), is_pad))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("ends", ["first", "both"])
def test_inputs_of_the_network(shape: Any, noise_at: Any, ends: Any, device: str) -> None:
    actions, noise, level, is_pad = drawn(shape, device)
    ours, again = (
        noisy_actions(actions, noise, level, is_pad, 10, noise_at=noise_at, ends=ends) for _ in range(2)
    )
    rest = (10, noise_at == 1, 1000.0, 10_000.0, ends == "both")
    theirs = noisy_actions_reference(actions, noise, level, is_pad, *rest)
    exact = noisy_actions_reference(actions.double(), noise.double(), level.double(), is_pad, *rest)
    time = (level if noise_at else 1.0 - level).double()
    steps = torch.arange(5, device=device).double() / (4 if ends == "both" else 5)
    angles = 1000.0 * time[:, None] * torch.exp(-math.log(10_000.0) * steps)
    exact = (*exact[:2], torch.cat([angles.sin(), angles.cos()], dim=-1))
    for want, got, same, eager in zip(exact, ours, again, theirs, strict=True):
        assert torch.equal(got, same)
        assert (got.shape, got.dtype) == (eager.shape, torch.float32)
        error, yardstick = ((x.double() - want).norm() / want.norm() for x in (got, eager))
        assert error <= max(1.5 * yardstick, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_loss_errs_no_more_than_eager(
    dtype: torch.dtype, compare: Callable[..., None], device: str
) -> None:
    against = {shape: drawn(shape, device) for shape in SHAPES}

    def loss(function: Any, predicted: Tensor) -> Tensor:
        _, target, _, is_pad = against[tuple(predicted.shape)]
        wide = torch.float64 if predicted.dtype == torch.float64 else torch.float32
        out: Tensor = function(predicted, target.to(wide), is_pad)
        return out

    functions = (partial(loss, function) for function in (masked_mse, masked_mse_reference))
    compare(*functions, [{"predicted": torch.randn(shape)} for shape in SHAPES], dtype)


def test_nothing_to_learn_is_no_loss(device: str) -> None:
    predicted = torch.randn(2, 3, 4, device=device, requires_grad=True)
    loss = masked_mse(predicted, torch.full_like(predicted, float("nan")), torch.ones_like(predicted).bool())
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss.item() == 0.0
    assert not gradient.any()


@pytest.mark.usefixtures("references")
def test_gradients_in_float64() -> None:
    _, target, _, is_pad = drawn((2, 3, 2), "cpu")
    predicted = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: masked_mse(x, target.double(), is_pad), predicted)


def test_they_are_sound_operators(device: str) -> None:
    _, noise, level, is_pad = drawn((2, 3, 4), device)
    torch.library.opcheck(module._inputs, (noise * 2.0, noise, level, is_pad, 6, True, 1000.0, 1e4, False))
    torch.library.opcheck(module._loss, (noise.clone().requires_grad_(), noise + 1.0, is_pad))


def test_they_compile_without_a_break(device: str) -> None:
    actions, noise, level, is_pad = drawn((2, 3, 4), device)
    weight = torch.randn(4, 4, device=device, requires_grad=True)

    def loss(weight: Tensor) -> Tensor:
        noisy, target, embedded = noisy_actions(actions, noise, level, is_pad, 4)
        return masked_mse(noisy @ weight + embedded[:, None], target, is_pad)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(weight), weight)[0] for f in (compiled, loss))
    assert torch.equal(ours, theirs)
