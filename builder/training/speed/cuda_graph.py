"""An update of the weights as two CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import import_utils

from ..optim.fused_adamw import FusedAdamW

Batch = Mapping[str, Any]
Output = dict[str, Tensor]


def capturable(device: torch.device) -> bool:
    """Whether what a device does can be captured."""
    return device.type == "cuda"


class CaptureFailed(Exception):
    """Why a step is no CUDA graph."""


@dataclass(frozen=True)
class Update:
    """An update of the weights in parts that do not depend on the host, each for this process alone but `together`."""

    loss: Callable[[Batch], Output]
    """Forward pass."""
    gradients: Callable[[Batch], Output]
    """Forward and backward pass, whose gradients are this process's part of their sum over all."""
    together: Callable[[Batch], Output]
    """Forward and backward pass of all processes, which add up gradients meanwhile."""
    exchange: Callable[[Sequence[Tensor]], None]
    """Adds up the gradients of all processes, after `gradients` of each."""
    step: Callable[[], Tensor]
    """Optimiser's step from the gradients, which it leaves; gives their norm."""
    phase: Callable[[str], AbstractContextManager[None]]
    """For a profile, the part of a step that happens inside."""


class CapturedUpdate:
    """The two halves of an update, captured on one batch that others are copied over."""

    def __init__(self, update: Update, optimizer: FusedAdamW, batch: Batch, seed: int) -> None:
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
            with _capturing(self._first, pool=pool):
                self.output = update.gradients(self._batch)
            self.gradients = optimizer.gradients()  # stay where they are
            optimizer.rehearse()
            with _capturing(self._second, pool=pool):
                self._norm = update.step()
        except RuntimeError as error:
            _heal(pool)
            raise CaptureFailed(str(error).splitlines()[0]) from error
        finally:
            optimizer.zero_grad()

    def free(self) -> None:
        """Give back the memory of the graphs, but for what their last replay gave as long as it is in use."""
        self._first.reset()
        self._second.reset()
        self.output, self.gradients, self._batch = {}, [], {}

    def fits(self, batch: Batch) -> bool:
        """Whether a batch is like the captured one."""
        return alike(self._batch, batch)

    def compute(self, batch: Batch, seed: int) -> None:
        """Losses and gradients of a batch."""
        self.replays += 1
        for key, value in self._batch.items():
            if isinstance(value, Tensor):
                value.copy_(batch[key], non_blocking=True)
        torch.manual_seed(seed)
        self._first.replay()

    def finish(self) -> Tensor:
        """Update the weights from these gradients; gives their norm."""
        self._second.replay()
        return self._norm


def alike(captured: Batch, batch: Batch) -> bool:
    """Whether a graph of one batch holds for another: tensors, which are copied, of one shape and type; all else equal."""
    return batch.keys() == captured.keys() and all(
        isinstance(batch[key], Tensor) and (value.shape, value.dtype) == (batch[key].shape, batch[key].dtype)
        if isinstance(value, Tensor)
        else _equal(value, batch[key])
        for key, value in captured.items()
    )


def _equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except (ValueError, RuntimeError):  # arrays, which are many truths
        return False


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What happens inside is captured as it would run: nothing is compiled, and transformers builds no masks for it."""
    known = import_utils.is_cuda_stream_capturing
    here = torch.cuda.current_stream()
    import_utils.is_cuda_stream_capturing = lambda: False
    try:
        with (
            torch.compiler.set_stance("eager_on_recompile"),
            # threads that load data go on calling the driver meanwhile
            torch.cuda.graph(
                graph,
                pool=pool,
                stream=None if here == torch.cuda.default_stream() else here,
                capture_error_mode="thread_local",
            ),
        ):
            yield
    finally:
        import_utils.is_cuda_stream_capturing = known


def _heal(pool: Any) -> None:
    """Let the device's memory and random numbers go on after a capture that failed, which leaves both in it."""
    device = torch.cuda.current_device()
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
    fresh = torch.Generator(device=f"cuda:{device}")
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


@contextmanager
def without_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
