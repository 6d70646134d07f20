"""Patch embeddings as products of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policysmith.builder.training.compilation import as_before, patch_products


@pytest.mark.parametrize("size", [(12, 16), (14, 19)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_over_patches_is_a_product(size: tuple[int, int], bias: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, (4, 8), stride=(4, 8), bias=bias)).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = model(images)
    gradients = torch.autograd.grad(expected.square().sum(), [images, *model.parameters()])
    found = patch_products(model)
    assert found == [model[0]]
    ours = model(images)
    torch.testing.assert_close(ours, expected)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), [images, *model.parameters()]), gradients, strict=True
    ):
        torch.testing.assert_close(mine, other)
    as_before(found)
    assert "forward" not in vars(model[0])
    assert torch.equal(model(images), expected)


def test_autocast_rounds_as_it_does() -> None:
    model = nn.Conv2d(3, 5, 4, stride=4)
    images = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        patch_products(model)
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
    assert patch_products(nn.ModuleList(others)) == []
