"""Random numbers as a pure function of a key and a counter: Philox4x32-10 (Salmon et al., 2011), the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Four words, int64 (..., 4) from 0 to 2^32 - 1, for counters of four words, int64 (...) each; seed from 0 to 2^64 - 1.

    Products wrap at 2^64 as if unsigned, and the shift's copies of the sign are masked.
    """
    a, b, c, d = counter
    low, high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> 32 & _WORD) ^ b ^ low, second & _WORD
        c, d = (first >> 32 & _WORD) ^ d ^ high, first & _WORD
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return torch.stack([a, b, c, d], dim=-1)


def uniform(seed: int, step: int, samples: Tensor, count: int) -> Tensor:
    """Even numbers in [0, 1), float32 (B, count), of the samples with indices (B,), int64, at a step."""
    samples = samples.to(torch.int64)
    words = []
    for block in range(-(-count // 4)):
        at, part = torch.full_like(samples, step & _WORD), torch.full_like(samples, block)
        words.append(philox(seed, (samples & _WORD, samples >> 32 & _WORD, at, part)))
    return (torch.cat(words, dim=-1)[:, :count] >> 8).float() * 2.0**-24
