"""Rotary position embeddings (Su et al., 2021): dimensions i and i + E / 2 of a head rotate together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 10_000.0
"""Default base of the frequencies."""
RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines (..., N, E / 2), float32."""


def rotary_frequencies(count: int, base: float, device: torch.device) -> Tensor:
    """Return the angles per position (count,), float32: base ** (-i / count)."""
    return base ** (-torch.arange(count, dtype=torch.float32, device=device) / count)


def rotary_table(positions: Tensor, size: int, base: float = BASE) -> RotaryTable:
    """Return cosines and sines (B, 1, N, E / 2) at positions (B, N), as in Llama and Gemma."""
    angles = positions[:, None, :, None].float() * rotary_frequencies(size // 2, base, positions.device)
    return angles.cos(), angles.sin()


def apply_rotary(values: Tensor, table: RotaryTable) -> Tensor:
    """Rotate queries or keys (B, G, N, E), in their dtype."""
    (cosine, sine), (first, second) = table, values.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return rotated.to(values.dtype)


@dataclass(frozen=True)
class RotaryEmbedding:
    """Rotary embedding of heads of one size, on one axis or on three, in the layout that transformers reads.

    On three axes (time, height, width), `sections` holds the number of frequencies of each: in blocks
    (Qwen2-VL, Wang et al., 2024) or, with `interleaved`, in turns (Qwen3-VL).
    """

    base: float
    size: int
    sections: tuple[int, int, int] | None = None
    interleaved: bool = False

    @property
    def axes(self) -> int:
        """Number of axes, 1 or 3."""
        return 1 if self.sections is None else 3

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> RotaryTable:
        """Return cosines and sines (B, N, E) at positions (A, B, N), cast from float32 to `dtype`."""
        index = torch.arange(self.size // 2, device=positions.device)
        frequencies = rotary_frequencies(self.size // 2, self.base, positions.device)
        by_frequency = positions.float()[self._axis(index)].permute(1, 2, 0)  # (B, N, E / 2)
        angles = (by_frequency * frequencies).repeat(1, 1, 2)  # (B, N, E)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _axis(self, index: Tensor) -> Tensor:
        """Return the axis of each frequency."""
        if self.sections is None:
            return torch.zeros_like(index)
        time, height, width = self.sections
        if not self.interleaved:
            return (index >= time).long() + (index >= time + height).long()
        turn = index % 3
        return torch.where(index < 3 * torch.where(turn == 1, height, width), turn, 0)
