"""Convolutions as products are those of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policysmith.components.layers.short_convolutions import convolve, gather, spread


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(5, 1, 2), (3, 2, 1), (1, 1, 0), (4, 3, 2), (1, 2, 0), (3, 1, 0)]
)
@pytest.mark.parametrize("length", [3, 4, 16])
def test_a_convolution_as_a_product(kernel: int, stride: int, padding: int, length: int) -> None:
    layer = nn.Conv1d(6, 10, kernel, stride=stride, padding=padding).double()
    steps = torch.randn(2, 6, length, dtype=torch.float64)
    torch.testing.assert_close(gather(layer, steps), layer(steps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "more"), [(4, 2, 1, 0), (3, 1, 1, 0), (5, 2, 2, 1), (2, 3, 0, 2)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_as_a_product(
    kernel: int, stride: int, padding: int, more: int, bias: bool
) -> None:
    layer = nn.ConvTranspose1d(
        6, 10, kernel, stride=stride, padding=padding, output_padding=more, bias=bias
    ).double()
    steps = torch.randn(2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(spread(layer, steps), layer(steps), rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("layer", [nn.Conv1d(6, 10, 5, padding=2), nn.ConvTranspose1d(6, 10, 4, 2, 1)])
def test_a_gpu_computes_the_same_in_inference_as_in_training(layer: nn.Conv1d | nn.ConvTranspose1d) -> None:
    layer, steps = layer.cuda(), torch.randn(2, 6, 16, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(convolve(layer, steps), layer(steps), rtol=1e-3, atol=1e-3)
