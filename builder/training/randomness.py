"""Seeds of a step and keys of its samples; whether making a batch draws random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mix(*values: int) -> int:
    """Hash several numbers to one 63-bit seed."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "big") >> 1


def sample_keys(seed: int, step: int, indices: Sequence[int]) -> Tensor:
    """Return keys (B,), int64, of the samples with these dataset indices; different in every step and for every sample."""
    return torch.tensor(indices, dtype=torch.int64) ^ mix(seed, step)


def is_random(make: Callable[[], Mapping[str, Any]], device: torch.device) -> bool:
    """Return whether `make` draws from torch's generators, or returns other tensors the second time."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = _generator_states(device)
        once = make()
        if not torch.equal(before, _generator_states(device)):
            return True
        again = make()
    return any(not torch.equal(value, again[key]) for key, value in once.items() if isinstance(value, Tensor))


def _generator_states(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state
