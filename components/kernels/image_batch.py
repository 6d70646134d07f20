"""Crop, resize, color jitter and normalization of camera bytes in one pass.

Every sample has one box and one set of colors for all its frames. Intermediate results are not rounded to
bytes.
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
    colors: Tensor | None,
    size: tuple[int, int],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels: Literal["first", "last"] = "first",
    resizes: bool = True,
) -> Tensor:
    """Map images, uint8 (B, T, 3, H, W) or channels-last (B, T, H, W, 3), to (B, T, 3, h, w) in `dtype`.

    Args:
        images: Frames of one camera.
        boxes: (B, 4), float32: top, left, height and width in pixels, possibly fractional, no larger than the
            image; edge pixels fill areas outside it. Boxes are resized bilinearly with antialiasing.
        colors: (B, 4), float32: factors of brightness, contrast and saturation and the shift of hue in
            circles, applied in this order by the formulas of torchvision's ColorJitter; contrast is relative
            to the mean brightness of each frame.
        size: Height and width of the result.
        mean: Mean of each channel of images in [0, 1].
        std: Standard deviation of each channel of images in [0, 1].
        dtype: Data type of the result.
        channels: Position of the channels of the images.
        resizes: May be False if all boxes are whole pixels of `size` already, which is faster.
    """
    last = channels == "last"
    out: Tensor = _forward(images, boxes, colors, *size, resizes, last, list(mean), list(std), dtype)
    return out


def reference(
    images: Tensor,
    boxes: Tensor,
    colors: Tensor | None,
    size: tuple[int, int],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
    channels: Literal["first", "last"] = "first",
    resizes: bool = True,
) -> Tensor:
    """Compute `image_batch` in plain torch, in the dtype of the boxes; `resizes` has no effect."""
    values = images.movedim(-1, 2) if channels == "last" else images
    precise = boxes.dtype
    rows = resize_weights(boxes[:, 0], boxes[:, 2], values.shape[-2], size[0])
    columns = resize_weights(boxes[:, 1], boxes[:, 3], values.shape[-1], size[1])
    values = values.to(precise) / 255.0
    values = torch.einsum("byh,btchw,bxw->btcyx", rows, values, columns)
    if colors is not None:
        brightness, contrast, saturation, turn = (
            f.view(-1, 1, 1, 1, 1) for f in colors.to(precise).unbind(1)
        )
        values = (values * brightness).clamp(0.0, 1.0)
        average = luma(values).mean(dim=(2, 3, 4), keepdim=True)
        values = (average + (values - average) * contrast).clamp(0.0, 1.0)
        base = luma(values)
        values = (base + (values - base) * saturation).clamp(0.0, 1.0)
        values = shift_hue(values, turn[:, 0])
    channels_of = zip(values.unbind(2), mean, std, strict=True)
    return torch.stack([(x - middle) / spread for x, middle, spread in channels_of], dim=2).to(dtype)


def resize_weights(starts: Tensor, lengths: Tensor, before: int, after: int) -> Tensor:
    """Return weights (B, after, before) to resize intervals of `lengths` (B,) from `starts` (B,), in pixels.

    Pixel j has the weight `max(0, 1 - |j + 1/2 - center| / support)`, with a support of the scale, at least
    1, as in `F.interpolate(antialias=True)` of the interval; pixels outside it have none.
    """
    base = starts.floor()
    scale = (lengths / after)[:, None]
    support = scale.clamp_min(1.0)
    steps = torch.arange(after, device=starts.device, dtype=starts.dtype)
    centers = (starts - base)[:, None] + scale * (steps + 0.5)  # (B, after)
    taps = math.ceil(2.0 * max(before / after, 1.0)) + 1
    pixels = (centers - support + 0.5).floor()[..., None] + torch.arange(taps, device=starts.device)
    weights = (1.0 - (pixels + 0.5 - centers[..., None]).abs() / support[..., None]).clamp_min(0.0)
    end = (starts - base + lengths).ceil()[:, None, None]
    weights = torch.where((pixels >= 0) & (pixels < end), weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    index = (pixels + base[:, None, None]).clamp(0, before - 1).long()
    out = torch.zeros(len(starts), after, before, dtype=starts.dtype, device=starts.device)
    return out.scatter_add(2, index, weights)


def _forward_reference(
    images: Tensor,
    boxes: Tensor,
    colors: Tensor | None,
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
        images, boxes, colors, (height, width), mean=mean, std=std, dtype=dtype, channels=channels
    )


_forward = operator(
    "image_batch",
    "forward",
    "(Tensor images, Tensor boxes, Tensor? colors, SymInt height, SymInt width, bool resizes, "
    "bool channels_last, float[] mean, float[] std, ScalarType dtype) -> Tensor",
    _forward_reference,
)


@_forward.register_fake
def _(
    images: Tensor,
    boxes: Tensor,
    colors: Tensor | None,
    height: int,
    width: int,
    resizes: bool,
    channels_last: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty((*images.shape[:2], 3, height, width), dtype=dtype, device=images.device)
