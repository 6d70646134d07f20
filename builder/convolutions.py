"""Convolutions in the layout that the device prefers.

A convolution whose windows do not overlap is a product of patches and weights; as such it needs no copies of
images and gradients in another memory format.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .module_patches import restore_later


def patch_products(policy: nn.Module, undo: ExitStack) -> None:
    """Compute convolutions over patches as matrix products until `undo` closes."""
    for module in policy.modules():
        if isinstance(module, nn.Conv2d) and _cuts_patches(module):
            restore_later(undo, module, "forward")
            module.forward = partial(_patch_product, module)  # type: ignore[method-assign]


def channels_last(policy: nn.Module, undo: ExitStack) -> None:
    """Lay the weights of 2-D convolutions out with channels last until `undo` closes.

    A GPU computes in this layout; images and gradients follow the weights.
    """
    for module in policy.modules():
        if isinstance(module, nn.Conv2d) and not _cuts_patches(module):
            if module.weight.is_contiguous():
                undo.callback(_lay_out, module.weight, torch.contiguous_format)
            _lay_out(module.weight, torch.channels_last)


def _lay_out(weight: Tensor, order: torch.memory_format) -> None:
    weight.data = weight.data.contiguous(memory_format=order)


def _cuts_patches(module: nn.Conv2d) -> bool:
    """Return whether a plain convolution cuts images into patches."""
    return (
        type(module).forward is nn.Conv2d.forward
        and "forward" not in vars(module)
        and module.kernel_size == module.stride
        and module.kernel_size != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def _patch_product(module: nn.Conv2d, input: Tensor) -> Tensor:  # called as the convolution is
    """(..., C, H, W) -> (..., D, H / kernel, W / kernel); incomplete patches at the edges are left out."""
    images = input
    if torch.is_autocast_enabled(images.device.type):
        images = images.to(torch.get_autocast_dtype(images.device.type))
    height, width = module.kernel_size
    rows, columns = images.shape[-2] // height, images.shape[-1] // width
    images = images[..., : rows * height, : columns * width]
    cut = images.unflatten(-1, (columns, width)).unflatten(
        -3, (rows, height)
    )  # (..., C, rows, h, columns, w)
    patches = cut.movedim((-4, -2), (-5, -4)).flatten(-3)  # (..., rows, columns, C * h * w)
    return F.linear(patches, module.weight.flatten(1), module.bias).movedim(-1, -3)
