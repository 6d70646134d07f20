"""Counting the operations of a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ... import compat
from ...module_patches import BufferSnapshot


class ModelFlops(FlopCounterMode):
    """A counter of matrix products and attention, without those that a backward pass recomputes.

    Recomputation is recognized by gradients, which a backward pass records nowhere else.
    """

    def __init__(self) -> None:
        super().__init__(display=False)

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        recomputes = compat.in_backward_pass() and torch.is_grad_enabled()
        return out if recomputes else super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


def count_operations(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> int:
    """Return the operations of a forward and a backward pass, which leaves no trace but gradients.

    Under the counter some operations are replaced by others that round differently, so no pass that trains
    runs there.
    """
    with _traceless(model, device), ModelFlops() as count:
        loss().backward()
    return int(count.get_total_flops())


@contextmanager
def _traceless(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers of the model and random generators when the context ends."""
    buffers, python, numpy = BufferSnapshot(model), random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            buffers.restore()
            random.setstate(python)
            np.random.set_state(numpy)
