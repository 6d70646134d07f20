"""Pure functions of image tensors, which depend on torch alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather pixels (B, T, 3, h, w) of images (B, T, 3, H, W) at `rows` (B, h) and `columns` (B, w)."""
    index = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1)  # (B, h * w)
    flat = images.flatten(3).flatten(1, 2)  # (B, T * 3, H * W)
    picked = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return picked.reshape(*images.shape[:3], rows.shape[1], columns.shape[1])


def resize_images(images: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """Resize images (B, T, 3, H, W) bilinearly to `size`, in their dtype; bytes are rounded."""
    if images.shape[-2:] == size:
        return images
    flat = images.flatten(0, 1)
    # With antialiasing, the CPU has a several times faster kernel for bytes, which is wrong for one column.
    direct = images.device.type == "cpu" and antialias and size[1] > 1
    if images.dtype == torch.uint8 and not direct:
        resized = to_bytes(F.interpolate(flat.float(), size, mode="bilinear", antialias=antialias))
    else:
        resized = F.interpolate(flat, size, mode="bilinear", antialias=antialias)
    return resized.reshape(*images.shape[:3], *size)


def pad_images(images: Tensor, size: tuple[int, int], corner: tuple[int, int], fill: float) -> Tensor:
    """Place images (..., h, w) at `corner`, (top, left), of larger ones of brightness `fill` in [0, 1]."""
    (height, width), (top, left) = size, corner
    around = (left, width - images.shape[-1] - left, top, height - images.shape[-2] - top)
    return F.pad(images, around, value=round(255.0 * fill) if images.dtype == torch.uint8 else fill)


def to_bytes(values: Tensor) -> Tensor:
    """Round levels 0.0 to 255.0 to uint8, in place."""
    return values.round_().clamp_(0.0, 255.0).to(torch.uint8)


def luma(images: Tensor) -> Tensor:
    """Return the luma (B, T, 1, H, W) of images (B, T, 3, H, W) by ITU-R BT.601, as floats."""
    red, green, blue = images.unbind(2)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(2)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of RGB images (B, T, 3, H, W) in [0, 1] by whole circles; HSV value and saturation stay.

    In HSV with value V and chroma C, channel n of (5, 3, 1) is `V - C max(0, min(k, 4 - k, 1))` at
    `k = (n + 6 hue) mod 6`.
    """
    red, green, blue = images.unbind(2)  # (B, T, H, W) each
    value, lowest = images.amax(2), images.amin(2)
    chroma = value - lowest
    safe = torch.where(chroma > 0.0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    sector = sector + 6.0 * shift
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (sector + offset).remainder(6.0)
        channels.append(value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0))
    return torch.stack(channels, dim=2)
