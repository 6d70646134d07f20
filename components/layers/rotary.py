"""Rotary positions (Su et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
"""Base of the frequencies, unless a model has its own."""
Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (B, 1, N, E / 2), float32."""


def rotation(positions: Tensor, size: int, base: float = BASE) -> Rotation:
    """The rotation at positions (B, N) of heads of size E, for several layers that turn theirs alike."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() * base ** (-steps / half)
    return angles.cos(), angles.sin()


def turn(values: Tensor, by: Rotation) -> Tensor:
    """Queries or keys (B, G, N, E) turned, in their dtype. Dimensions i and i + E / 2 turn together."""
    (cosine, sine), (first, second) = by, values.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(values.dtype)


def rotate(values: Tensor, positions: Tensor, base: float = BASE) -> Tensor:
    """Queries or keys (B, G, N, E) turned by their positions (B, N), in the dtype of the values.

    Dimension i and i + E / 2 turn together by position * base ** (-2 i / E), as in Llama and Gemma.
    """
    return turn(values, rotation(positions, values.shape[-1], base))
