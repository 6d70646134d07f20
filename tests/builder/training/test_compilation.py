"""Patch embeddings as products of matrices."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch import nn

from policysmith.builder.convolutions import channels_last, patch_products
from policysmith.builder.training.speed.compilation import compile_layers


@pytest.mark.parametrize("size", [(12, 16), (14, 19)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(2,), ()], ids=["batch", "one"])
def test_a_convolution_over_patches_is_a_product(
    size: tuple[int, int], bias: bool, batch: tuple[int, ...]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, (4, 8), stride=(4, 8), bias=bias)).double()
    images = torch.randn(*batch, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = model(images)
    gradients = torch.autograd.grad(expected.square().sum(), [images, *model.parameters()])
    with ExitStack() as undo:
        patch_products(model, undo)
        assert "forward" in vars(model[0])
        ours = model[0](input=images)
        torch.testing.assert_close(ours, expected)
        for mine, other in zip(
            torch.autograd.grad(ours.square().sum(), [images, *model.parameters()]), gradients, strict=True
        ):
            torch.testing.assert_close(mine, other)
    assert "forward" not in vars(model[0])
    assert torch.equal(model(images), expected)


def test_autocast_rounds_as_it_does() -> None:
    model = nn.Conv2d(3, 5, 4, stride=4)
    images = torch.randn(2, 3, 8, 8)
    with ExitStack() as undo, torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        patch_products(model, undo)
        ours = model(images)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)


def test_other_convolutions_stay_as_they_are() -> None:
    class Odd(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1.0

    others = [
        nn.Conv2d(3, 5, 4, stride=2),
        nn.Conv2d(3, 5, 1),
        nn.Conv2d(3, 5, 4, stride=4, padding=1),
        nn.Conv2d(3, 3, 4, stride=4, groups=3),
        nn.Conv2d(3, 5, 4, stride=4, dilation=2),
        Odd(3, 5, 4, stride=4),
    ]
    others[0].forward = own = partial(nn.Conv2d.forward, others[0])  # type: ignore[method-assign]
    with ExitStack() as undo:
        patch_products(nn.ModuleList(others), undo)
        assert others[0].forward is own
        assert not any("forward" in vars(module) for module in others[1:])


def test_what_authors_put_into_modules_is_there_again_afterwards() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(x)
            return found

    policy = nn.Module()
    policy.layers = nn.ModuleList([Layer(), Layer()])
    policy.layers[0].forward = own = partial(Layer.forward, policy.layers[0])  # type: ignore[method-assign]
    policy.layers[1].compile(backend="eager")
    compiled = policy.layers[1]._compiled_call_impl
    with ExitStack() as undo:
        assert compile_layers(policy, undo, trained=False) == list(policy.layers)
        assert policy.layers[0]._compiled_call_impl is not None
        assert policy.layers[1]._compiled_call_impl is not compiled
    assert policy.layers[0].forward is own
    assert policy.layers[0]._compiled_call_impl is None
    assert policy.layers[1]._compiled_call_impl is compiled


def test_convolutions_lie_as_before_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, stride=3))
    with ExitStack() as undo:
        channels_last(model, undo)
        assert not model[0].weight.is_contiguous()
        assert model[1].weight.is_contiguous()  # a product of patches
    assert model[0].weight.is_contiguous()


def test_convolutions_that_their_author_laid_out_stay_so() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    with ExitStack() as undo:
        channels_last(model, undo)
    assert not model[0].weight.is_contiguous()
