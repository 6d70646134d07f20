"""Pure functions of image tensors; torch alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels (B, T, 3, h, w) of `images` (B, T, 3, H, W) at `rows` (B, h) and `columns` (B, w) of each sample."""
    index = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1)  # (B, h * w)
    flat = images.flatten(3).flatten(1, 2)  # (B, T * 3, H * W)
    picked = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return picked.reshape(*images.shape[:3], rows.shape[1], columns.shape[1])


def scaled(images: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """Images (B, T, 3, H, W) resized bilinearly to `size`, in their dtype; bytes are rounded to the nearest level."""
    if images.shape[-2:] == size:
        return images
    flat = images.flatten(0, 1)
    # With antialiasing, the CPU has its own, several times faster, kernel for bytes; it is wrong for one column.
    direct = images.device.type == "cpu" and antialias and size[1] > 1
    if images.dtype == torch.uint8 and not direct:
        resized = to_bytes(F.interpolate(flat.float(), size, mode="bilinear", antialias=antialias))
    else:
        resized = F.interpolate(flat, size, mode="bilinear", antialias=antialias)
    return resized.reshape(*images.shape[:3], *size)


def padded(images: Tensor, size: tuple[int, int], corner: tuple[int, int], fill: float) -> Tensor:
    """Images (..., h, w) at `corner`, as top and left, of larger ones of `size` and of brightness `fill` in [0, 1]."""
    (height, width), (top, left) = size, corner
    around = (left, width - images.shape[-1] - left, top, height - images.shape[-2] - top)
    return F.pad(images, around, value=round(255.0 * fill) if images.dtype == torch.uint8 else fill)


def to_bytes(values: Tensor) -> Tensor:
    """Levels 0.0 to 255.0 as uint8, rounded; changes `values`."""
    return values.round_().clamp_(0.0, 255.0).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Brightness (B, T, 1, H, W) of images (B, T, 3, H, W), the luma of ITU-R BT.601, as floats."""
    red, green, blue = images.unbind(2)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(2)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of RGB images (B, T, 3, H, W) in [0, 1] by `turn`, in whole circles; HSV value and saturation stay.

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
    sector = sector + 6.0 * turn
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (sector + offset).remainder(6.0)
        channels.append(value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0))
    return torch.stack(channels, dim=2)
