"""Augmentations drawn for each sample: where to crop and how to change the colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .philox import uniform


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is drawn. With neither `window` nor `area`, the box is the whole image."""

    window: tuple[int, int] | None = None
    """Height and width of a window at a random place, in whole pixels."""
    area: tuple[float, float] | None = None
    """Smallest and largest share of the image's area in a box of random size and place (Szegedy et al., 2015)."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of width to height of such a box; its logarithm is drawn evenly."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    """Factors are drawn evenly from `1 - strength`, at least 0, to `1 + strength`."""
    hue: float = 0.0
    """Largest turn of the hue, in circles."""


def draw(
    seed: int, step: int, samples: Tensor, size: tuple[int, int], options: Augmentation
) -> tuple[Tensor, Tensor]:
    """Boxes (B, 4), as top, left, height and width in pixels, and colours (B, 4), as factors of brightness, contrast and
    saturation and turn of hue, float32.

    A pure function of the seed, the step, the sample's index in `samples` (B,), int64, and the options: neither device,
    batch size nor order matter. `size` is the height and width of the images.
    """
    numbers = uniform(seed, step, samples, 8).double()
    full_height, full_width = size
    heights, widths = (torch.full_like(numbers[:, 0], side) for side in size)
    down, right = numbers[:, 0], numbers[:, 1]
    tops, lefts = torch.zeros_like(down), torch.zeros_like(down)
    if options.window is not None:
        heights, widths = (torch.full_like(down, side) for side in options.window)
        tops = (down * (full_height - options.window[0] + 1)).floor()
        lefts = (right * (full_width - options.window[1] + 1)).floor()
    elif options.area is not None:
        low, high = options.area
        pixels = (low + (high - low) * numbers[:, 2]) * full_height * full_width
        low, high = (math.log(ratio) for ratio in options.aspect)
        ratios = (low + (high - low) * numbers[:, 3]).exp()
        heights = (pixels / ratios).sqrt().clamp(1.0, full_height)
        widths = (pixels * ratios).sqrt().clamp(1.0, full_width)
        tops, lefts = down * (full_height - heights), right * (full_width - widths)
    strengths = (options.brightness, options.contrast, options.saturation)
    colours = []
    for strength, number in zip(strengths, numbers[:, 4:7].unbind(1), strict=True):
        least = max(0.0, 1.0 - strength)
        colours.append(least + (1.0 + strength - least) * number)
    colours.append((2.0 * numbers[:, 7] - 1.0) * options.hue)
    return torch.stack([tops, lefts, heights, widths], 1).float(), torch.stack(colours, 1).float()
