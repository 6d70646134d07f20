"""Rotary positions (Su et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(values: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Queries or keys (B, G, N, E) turned by their positions (B, N), in the dtype of the values.

    Dimension i and i + E / 2 turn together by position * base ** (-2 i / E), as in Llama and Gemma.
    """
    half = values.shape[-1] // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = positions[:, None, :, None].float() * base ** (-steps / half)  # (B, 1, N, E / 2)
    sine, cosine = angles.sin(), angles.cos()
    first, second = values.float().split(half, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(values.dtype)
