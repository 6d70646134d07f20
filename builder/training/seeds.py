"""Seeds of what is random in a step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def mix(*values: int) -> int:
    """One 63-bit seed from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "big") >> 1


def sample_keys(seed: int, step: int, indices: Sequence[int]) -> Tensor:
    """Keys (B,), int64, of the samples with these indices in the dataset, at a step, at which they differ from each other."""
    return torch.tensor(indices, dtype=torch.int64) ^ mix(seed, step)
