"""Random bits as a pure function of key and counter, by Philox4x32-10 (Salmon et al., 2011).

The bits are the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import operator

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(key: int | Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Return four words, int64 (..., 4) below 2^32, for counters of four words, int64 (...) each.

    The key is a number from 0 to 2^64 - 1, or one per counter, int64. Products wrap at 2^64 as if unsigned,
    and sign bits copied by the shift are masked.
    """
    a, b, c, d = counter
    low, high = key & _WORD, (key >> 32) & _WORD
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> 32 & _WORD) ^ b ^ low, second & _WORD
        c, d = (first >> 32 & _WORD) ^ d ^ high, first & _WORD
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return torch.stack([a, b, c, d], dim=-1)


def random_words(keys: Tensor, stream: int, first: int, blocks: int) -> Tensor:
    """Return random bits, int64 (B, 4 * blocks) below 2^32, for keys (B,), int64, of one stream.

    `first` is the first block. Streams and blocks are numbered from 0 to 2^31 - 1.
    """
    out: Tensor = _words(keys, stream, first, blocks)
    return out


def reference(keys: Tensor, stream: int, first: int, blocks: int) -> Tensor:
    """Compute `random_words` in plain torch."""
    at = torch.arange(first, first + blocks, device=keys.device).expand(len(keys), blocks)
    zeros = torch.zeros_like(at)
    return philox(keys[:, None], (at, torch.full_like(at, stream), zeros, zeros)).flatten(1)


_words = operator(
    "philox", "words", "(Tensor keys, SymInt stream, SymInt first, SymInt blocks) -> Tensor", reference
)


@_words.register_fake
def _(keys: Tensor, stream: int, first: int, blocks: int) -> Tensor:
    return keys.new_empty(len(keys), 4 * blocks)
