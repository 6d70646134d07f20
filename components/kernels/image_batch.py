"""Bytes from a camera to what a backbone reads: crop, resize, colour jitter and normalisation in one pass.

Every sample has its box and its colours, shared by all its frames. Nothing is rounded to bytes in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..pixels import luma, shift_hue
from .dispatch import operator


def image_batch(
    images: Tensor,
    boxes: Tensor,
    colours: Tensor | None,
    size: tuple[int, int],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels: Literal["first", "last"] = "first",
    resizes: bool = True,
) -> Tensor:
    """Images, uint8 (B, T, 3, H, W), or (B, T, H, W, 3) with the channels last, -> (B, T, 3, h, w) in `dtype`.

    boxes (B, 4), float32, are top, left, height and width in pixels, whole or not, no larger than the image; where one
    reaches outside, edge pixels fill it. Each is resized to `size` bilinearly with antialiasing; where all are whole
    pixels and of this size already, `resizes` may be False, which is faster. colours (B, 4),
    float32, are factors of brightness, contrast and saturation and the turn of hue in circles, applied in this order by
    the formulas of torchvision's ColorJitter; contrast is about the mean brightness of each frame. `mean` and `std`
    are those of the channels of images in [0, 1].
    """
    last = channels == "last"
    out: Tensor = _forward(images, boxes, colours, *size, resizes, last, list(mean), list(std), dtype)
    return out


def reference(
    images: Tensor,
    boxes: Tensor,
    colours: Tensor | None,
    size: tuple[int, int],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels: Literal["first", "last"] = "first",
    resizes: bool = True,
) -> Tensor:
    """The same in plain torch, computed in the dtype of the boxes, whether `resizes` or not."""
    values = images.movedim(-1, 2) if channels == "last" else images
    precise = boxes.dtype
    rows = resizing(boxes[:, 0], boxes[:, 2], values.shape[-2], size[0])
    columns = resizing(boxes[:, 1], boxes[:, 3], values.shape[-1], size[1])
    values = values.to(precise) / 255.0
    values = torch.einsum("byh,btchw,bxw->btcyx", rows, values, columns)
    if colours is not None:
        brightness, contrast, saturation, turn = (
            f.view(-1, 1, 1, 1, 1) for f in colours.to(precise).unbind(1)
        )
        values = (values * brightness).clamp(0.0, 1.0)
        average = luma(values).mean(dim=(2, 3, 4), keepdim=True)
        values = (average + (values - average) * contrast).clamp(0.0, 1.0)
        base = luma(values)
        values = (base + (values - base) * saturation).clamp(0.0, 1.0)
        values = shift_hue(values, turn[:, 0])
    channels_of = zip(values.unbind(2), mean, std, strict=True)
    return torch.stack([(x - middle) / spread for x, middle, spread in channels_of], dim=2).to(dtype)


def resizing(starts: Tensor, lengths: Tensor, before: int, after: int) -> Tensor:
    """Weights (B, after, before) that resize stretches of `lengths` (B,) from `starts` (B,) on, in pixels.

    Pixel j weighs `max(0, 1 - |j + 1/2 - centre| / support)`, with a support of the scale or of 1 if that is larger, as
    in `F.interpolate(antialias=True)` of the stretch; what lies outside it counts for nothing.
    """
    base = starts.floor()
    scale = (lengths / after)[:, None]
    support = scale.clamp_min(1.0)
    steps = torch.arange(after, device=starts.device, dtype=starts.dtype)
    centres = (starts - base)[:, None] + scale * (steps + 0.5)  # (B, after)
    taps = math.ceil(2.0 * max(before / after, 1.0)) + 1
    pixels = (centres - support + 0.5).floor()[..., None] + torch.arange(taps, device=starts.device)
    weights = (1.0 - (pixels + 0.5 - centres[..., None]).abs() / support[..., None]).clamp_min(0.0)
    end = (starts - base + lengths).ceil()[:, None, None]
    weights = torch.where((pixels >= 0) & (pixels < end), weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    index = (pixels + base[:, None, None]).clamp(0, before - 1).long()
    out = torch.zeros(len(starts), after, before, dtype=starts.dtype, device=starts.device)
    return out.scatter_add(2, index, weights)


def _forward_reference(
    images: Tensor,
    boxes: Tensor,
    colours: Tensor | None,
    height: int,
    width: int,
    resizes: bool,
    channels_last: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    channels: Literal["first", "last"] = "last" if channels_last else "first"
    return reference(
        images, boxes, colours, (height, width), mean=mean, std=std, dtype=dtype, channels=channels
    )


_forward = operator(
    "image_batch",
    "forward",
    "(Tensor images, Tensor boxes, Tensor? colours, SymInt height, SymInt width, bool resizes, "
    "bool channels_last, float[] mean, float[] std, ScalarType dtype) -> Tensor",
    _forward_reference,
)


@_forward.register_fake
def _(
    images: Tensor,
    boxes: Tensor,
    colours: Tensor | None,
    height: int,
    width: int,
    resizes: bool,
    channels_last: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty((*images.shape[:2], 3, height, width), dtype=dtype, device=images.device)
