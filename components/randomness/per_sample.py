"""Random numbers that belong to samples, independent of device, process and the rest of the batch.

A batch in training holds a key for each of its samples, derived from seed, step and sample. All numbers that
a transform draws for a sample depend only on this key and the transform's stream.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..kernels.philox import random_words

SAMPLE_KEY = "sample.key"
"""Key of a batch that holds the keys (B,), int64, of its samples."""
_WORD = 2.0**-32


class Draws:
    """Stream of random numbers for each of B samples; every call draws new numbers."""

    def __init__(self, batch: Mapping[str, Any], values: Tensor, stream: str) -> None:
        """Start a named stream for the samples of `values` (B, ...), on their device.

        A batch without keys takes some from torch's generator at the first draw.
        """
        self._batch, self._values = batch, values
        self._stream = zlib.crc32(stream.encode()) >> 1
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._values)

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers from `low` to `high`, float32 (B, count); from 0 to 1 they stay below 1."""
        numbers = (self._words(count) >> 8).float() * 2.0**-24
        return numbers if (low, high) == (0.0, 1.0) else numbers * (high - low) + low

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """Return integers from `low` to `high - 1`, less than 2^31 of them, int64 (B, count)."""
        return (self._words(count) * (high - low) >> 32) + low

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float32 (B, *shape), by Box and Muller (1958).

        Devices may differ in the last bit.
        """
        count = math.prod(shape)
        first, second = self._words(count + count % 2).double().chunk(2, dim=1)
        radius, angle = (-2.0 * ((first + 0.5) * _WORD).log()).sqrt(), second * (2.0 * math.pi * _WORD)
        numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return numbers[:, :count].float().reshape(-1, *shape)

    def _words(self, count: int) -> Tensor:
        blocks = -(-count // 4)
        words = random_words(self._keys, self._stream, self._drawn, blocks)
        self._drawn += blocks
        return words[:, :count]

    @cached_property
    def _keys(self) -> Tensor:
        keys: Tensor | None = self._batch.get(SAMPLE_KEY)
        if keys is None:
            return torch.randint(2**63 - 1, (len(self),), device=self._values.device)
        return keys
