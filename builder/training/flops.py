"""Operations that a model needs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


class ModelFlops(FlopCounterMode):
    """Counts matrix products and attention inside the block, but for what a backward pass computes again to save memory.

    That is known by its gradients, which are recorded there and nowhere else in a backward pass.
    """

    def __init__(self) -> None:
        super().__init__(display=False)

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        again = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
        return out if again else super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]
