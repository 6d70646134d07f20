"""Whether something is random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_random(make: Callable[[], Mapping[str, Any]], device: torch.device) -> bool:
    """Whether making a batch draws random numbers, or gives two different ones."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = _drawn(device)
        once = make()
        if not torch.equal(before, _drawn(device)):
            return True
        again = make()
    return any(not torch.equal(value, again[key]) for key, value in once.items() if isinstance(value, Tensor))


def _drawn(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


@contextmanager
def mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """A module in training or evaluation mode, and afterwards as it was."""
    was = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was)
