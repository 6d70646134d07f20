"""Convolutions over a few steps as matrix products.

In inference a chunk has few steps and a layer millions of weights, so the time of a convolution is that of
reading its weights, which a matrix product does best. Training, with its batches, leaves it to cuDNN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = 256
"""Steps in a batch up to which a convolution is computed as a product."""


def convolve(layer: nn.Conv1d | nn.ConvTranspose1d, steps: Tensor) -> Tensor:
    """Apply a convolution to steps (B, D, H), by the faster way."""
    few = steps.is_cuda and not torch.is_grad_enabled() and steps.shape[0] * steps.shape[2] <= MOST
    if not few:
        out: Tensor = layer(steps)
        return out
    return spread(layer, steps) if isinstance(layer, nn.ConvTranspose1d) else gather(layer, steps)


def gather(layer: nn.Conv1d, steps: Tensor) -> Tensor:
    """Apply a convolution without groups or dilation to steps (B, D, H), as one product of its windows."""
    (kernel,), (stride,), padding = layer.kernel_size, layer.stride, layer.padding[0]
    assert isinstance(padding, int)  # not `same`
    if kernel == 1 and stride == 1 and not padding:
        rows = steps.transpose(1, 2)
    else:
        windows = F.pad(steps, (padding, padding)).unfold(2, kernel, stride)  # (B, D, H', kernel)
        rows = windows.transpose(1, 2).flatten(2)
    return F.linear(rows, layer.weight.flatten(1), layer.bias).transpose(1, 2)


def spread(layer: nn.ConvTranspose1d, steps: Tensor) -> Tensor:
    """Apply a transposed convolution without groups or dilation to steps (B, D, H), as one product."""
    (kernel,), (stride,), padding = layer.kernel_size, layer.stride, layer.padding[0]
    assert isinstance(padding, int)
    (more,) = layer.output_padding
    length = (steps.shape[2] - 1) * stride - 2 * padding + kernel + more
    windows = (steps.transpose(1, 2) @ layer.weight.flatten(1)).transpose(1, 2)  # (B, D' * kernel, H)
    summed = F.fold(windows, (1, length), (1, kernel), padding=(0, padding), stride=(1, stride))
    out = summed.squeeze(2)
    return out if layer.bias is None else out + layer.bias[:, None]


__all__ = ["convolve", "gather", "spread"]
