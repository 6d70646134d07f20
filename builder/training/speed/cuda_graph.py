"""An update of the weights, captured as two CUDA graphs. See docs/decisions/0011-a-step-is-two-graphs.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ... import compat
from ...capture import CaptureError, capturing
from ..update import Batch, Update


class CapturedUpdate:
    """The two halves of an update, captured on one batch that others are copied over."""

    def __init__(self, update: Update, batch: Batch, seed: int) -> None:
        """Capture the losses and gradients of this process as one graph, and the optimizer's step as another.

        Raises:
            CaptureError: if either cannot be captured.
        """
        self._batch = {
            key: value.clone() if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        self.replays = 0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._first, self._second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.manual_seed(seed)
        pool = torch.cuda.graph_pool_handle()
        try:
            with capturing(self._first, pool):
                self.output = update.own_gradients(self._batch)
            self.gradients = update.optimizer.gradients()  # at addresses that stay
            update.optimizer.step_without_effect()
            with capturing(self._second, pool):
                self._norm = update.step()
        except RuntimeError as error:
            compat.recover_from_failed_capture(pool)
            raise CaptureError(str(error).splitlines()[0]) from error
        finally:
            update.optimizer.zero_grad()

    def free(self) -> None:
        """Release the memory of the graphs, except outputs of the last replay that are still in use."""
        self._first.reset()
        self._second.reset()
        self.output, self.gradients, self._batch = {}, [], {}

    def fits(self, batch: Batch) -> bool:
        """Return whether the graphs can replay a batch."""
        return fits(self._batch, batch)

    def compute(self, batch: Batch, seed: int) -> None:
        """Compute the losses and gradients of a batch."""
        self.replays += 1
        for key, value in self._batch.items():
            if isinstance(value, Tensor):
                value.copy_(batch[key], non_blocking=True)
        torch.manual_seed(seed)
        self._first.replay()

    def finish(self) -> Tensor:
        """Update the weights from these gradients, and return their norm."""
        self._second.replay()
        return self._norm


def fits(captured: Mapping[str, Any], batch: Mapping[str, Any]) -> bool:
    """Return whether a batch equals the captured one in everything but the values of tensors."""
    return batch.keys() == captured.keys() and all(
        isinstance(batch[key], Tensor) and (value.shape, value.dtype) == (batch[key].shape, batch[key].dtype)
        if isinstance(value, Tensor)
        else _equal(value, batch[key])
        for key, value in captured.items()
    )


def _equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except (ValueError, RuntimeError):  # arrays compare element by element
        return False
