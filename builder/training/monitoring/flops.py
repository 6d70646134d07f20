"""Operations that a model needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..speed.module_patches import Statistics


class ModelFlops(FlopCounterMode):
    """Counts matrix products and attention inside the block, but for what a backward pass computes again to save memory.

    That is known by its gradients, which are recorded there and nowhere else in a backward pass.
    """

    def __init__(self) -> None:
        super().__init__(display=False)

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        again = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
        return out if again else super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


def counted(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> int:
    """Operations of a forward and a backward pass, which leave nothing behind but gradients.

    Under the counter some operations are replaced by others with other bits, so no pass that is learned from runs there.
    """
    with _traceless(model, device), ModelFlops() as count:
        loss().backward()
    return int(count.get_total_flops())


@contextmanager
def _traceless(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers of the model and random generators are afterwards as they were."""
    statistics, python, numpy = Statistics(model), random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            statistics.put_back()
            random.setstate(python)
            np.random.set_state(numpy)
