"""Positions and visibility of the tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

AttentionPattern = Literal["bidirectional", "causal"]


@dataclass(frozen=True)
class Places:
    """Positions of the N tokens of a segment on A axes, before masking.

    The position of a token is the start of its segment, plus the advance of the valid tokens before it, plus
    its own offset.
    """

    advance: Tensor
    """(N,): advance of later tokens by a valid token."""
    offset: Tensor
    """(A, N): offset of a token from its start, on each axis."""

    @classmethod
    def sequential(cls, count: int, axes: int, device: torch.device) -> Places:
        """Return consecutive places, as in text."""
        return cls(
            torch.ones(count, dtype=torch.int64, device=device),
            torch.zeros(axes, count, dtype=torch.int64, device=device),
        )

    @classmethod
    def concatenate(cls, segments: list[Places]) -> Places:
        """Concatenate the places of segments."""
        return cls(
            torch.cat([segment.advance for segment in segments]),
            torch.cat([segment.offset for segment in segments], dim=1),
        )

    def repeat(self, times: int) -> Places:
        """Repeat the segment several times."""
        return Places(self.advance.repeat(times), self.offset.repeat(1, times))

    def positions(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions (A, B, N) for mask (B, N), and the start (B, N) of the tokens after each."""
        advance = mask * self.advance
        end = advance.cumsum(1)
        return self.offset[:, None] + end - advance, end


def attention_blocks(segments: Sequence[tuple[int, AttentionPattern]], device: torch.device) -> Tensor:
    """Return the block (N,) of each token, for segments of some lengths and attention patterns.

    A token sees its block and earlier ones. Tokens of a bidirectional segment share one block; each token of
    a causal segment has its own.
    """
    found, start = [], 0
    for count, attention in segments:
        steps = torch.arange(count, device=device)
        found.append(start + (steps if attention == "causal" else torch.zeros_like(steps)))
        start += count
    return torch.cat(found)


def attention_mask(blocks: Tensor, mask: Tensor) -> Tensor:
    """Return the mask (B, 1, N, N) of valid tokens in the same or an earlier block; a token sees itself."""
    seen = (blocks[None, :] <= blocks[:, None]) & mask[:, None, :]  # (B, N, N)
    itself = torch.eye(len(blocks), dtype=torch.bool, device=mask.device)
    return (seen | itself)[:, None]
