"""The sequence a language model reads: where each token is, whom it sees, and its rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Attention = Literal["bidirectional", "causal"]


@dataclass(frozen=True)
class Places:
    """Where the N tokens of a stretch lie, on each of A axes, before any of them is hidden.

    A token stands at the start of its stretch, plus what the valid tokens before it advanced, plus its own offset.
    """

    advance: Tensor
    """(N,): how far a valid token moves on those that follow."""
    offset: Tensor
    """(A, N): how far from there it stands on each axis."""

    @classmethod
    def in_line(cls, count: int, axes: int, device: torch.device) -> Places:
        """One place after the other, as in text."""
        return cls(
            torch.ones(count, dtype=torch.int64, device=device),
            torch.zeros(axes, count, dtype=torch.int64, device=device),
        )

    @classmethod
    def joined(cls, stretches: list[Places]) -> Places:
        """Several stretches, end to end."""
        return cls(
            torch.cat([stretch.advance for stretch in stretches]),
            torch.cat([stretch.offset for stretch in stretches], dim=1),
        )

    def repeated(self, times: int) -> Places:
        """The stretch, several times."""
        return Places(self.advance.repeat(times), self.offset.repeat(1, times))

    def positions(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (A, B, N) for mask (B, N), and where the tokens that follow each of them start (B, N)."""
        moved = mask * self.advance
        passed = moved.cumsum(1)
        return self.offset[:, None] + passed - moved, passed


def blocks(stretches: Sequence[tuple[int, Attention]], device: torch.device) -> Tensor:
    """Block (N,) of each token of several stretches, by length and attention: it sees its block and those before.

    Tokens of a bidirectional stretch share one block; of a causal stretch each has its own.
    """
    found, start = [], 0
    for count, attention in stretches:
        steps = torch.arange(count, device=device)
        found.append(start + (steps if attention == "causal" else torch.zeros_like(steps)))
        start += count
    return torch.cat(found)


def visible(blocks: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, N, N), True where a token sees another: a valid one of its block or an earlier one, and always itself."""
    seen = (blocks[None, :] <= blocks[:, None]) & mask[:, None, :]  # (B, N, N)
    itself = torch.eye(len(blocks), dtype=torch.bool, device=mask.device)
    return (seen | itself)[:, None]
