"""Replays an update of the weights as CUDA graphs, where the GPU would wait for the host otherwise.

A small policy's step is thousands of launches of some microseconds each, and a host that launches them one by one is
slower than the GPU that runs them. A graph launches them all at once. Whether that pays is found out by trying:

    WARM updates as they are, in which layers are compiled
    TIMED updates, each waited for: is the host busy for most of the time?
    one update that may not wait for the GPU, because what waits cannot be captured
    capture; the first CHECKED replays must lose what the policy loses without a graph
    TIMED replays: are they faster?
    every AGAIN replays one is checked again

What can be captured is what comes out the same for every batch: random numbers of the GPU do, because a graph draws them
from the seed that is set before it is replayed; numbers drawn on the host would not, which the check notices.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import import_utils

from .fused_adamw import FusedAdamW
from .undo import Statistics

WARM, TIMED, CHECKED, AGAIN = 10, 5, 2, 1000
OTHERS = 20
"""Batches that a graph does not hold for, of which there must be more than that it holds for, before it is given up."""
BUSY = 0.4
"""Share of a step's time for which the host must be busy; below, it is far enough ahead that the GPU never waits."""
TOLERANCE = 0.01
"""Relative difference of a loss that kernels may make, which sum in another order from run to run."""

Batch = Mapping[str, Any]
Output = dict[str, Tensor]


class CaptureFailed(Exception):
    """Why a step is no CUDA graph."""


@dataclass(frozen=True)
class Update:
    """An update of the weights in two halves, neither of which may depend on the host."""

    loss: Callable[[Batch], Output]
    """Forward pass."""
    gradients: Callable[[Batch], Output]
    """Forward and backward pass."""
    step: Callable[[], Tensor]
    """Optimiser's step from the gradients, which it leaves; gives their norm."""
    phase: Callable[[str], AbstractContextManager[None]]
    """For a profile, the part of a step that happens inside."""


class StepGraph:
    """Makes updates, by graphs once these are known to be faster."""

    def __init__(
        self, update: Update, model: nn.Module, optimizer: FusedAdamW, note: Callable[[str], None]
    ) -> None:
        self._update, self._model, self._optimizer, self._note = update, model, optimizer, note
        self._taken = 0
        self._others = 0
        self._settled = False
        self._host: list[float] = []
        self._eager: list[float] = []
        self._replays: list[float] = []
        self._graphs: _Graphs | None = None

    def __call__(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        """Update the weights from a batch; gives losses and norm of the gradients, valid until the next update."""
        self._taken += 1
        if self._graphs is not None:
            return self._replayed(self._graphs, batch, seed)
        if self._settled or self._taken <= WARM:
            return self._plainly(batch, seed)
        if self._taken <= WARM + TIMED:
            return self._watched(batch, seed)
        return self._tried(batch, seed)

    def _plainly(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        torch.manual_seed(seed)
        output = self._update.gradients(batch)
        norm = self._update.step()
        self._optimizer.zero_grad()
        return output, norm

    def _watched(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = self._plainly(batch, seed)
        self._host.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        self._eager.append(time.perf_counter() - start)
        return result

    def _tried(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        host, step = (1e3 * statistics.median(times) for times in (self._host, self._eager))
        if host < BUSY * step:
            self._settle(f"no CUDA graph: the host is busy for {host:.1f} of {step:.1f} ms of a step")
            return self._plainly(batch, seed)
        kept = self._kept()
        try:
            with _without_waiting():
                result = self._plainly(batch, seed)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            self._settle("no CUDA graph: a step waits for the GPU")
            self._optimizer.zero_grad()
            self._put_back(kept)
            return self._plainly(batch, seed)
        try:
            self._graphs = _Graphs(self._update, self._optimizer, batch, seed)
        except CaptureFailed as failure:
            self._settle(f"no CUDA graph: a step could not be captured ({failure})")
        return result

    def _replayed(self, graphs: _Graphs, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        if not graphs.fits(batch):
            self._others += 1
            if self._others > max(OTHERS, graphs.replays):
                self._drop(
                    f"no CUDA graph: of {self._others + graphs.replays} batches, {self._others} had other sizes or texts "
                    "than the one that it was made of"
                )
            return self._plainly(batch, seed)
        if graphs.replays < CHECKED or graphs.replays % AGAIN == 0:
            return self._compared(graphs, batch, seed)
        if self._settled:
            with self._update.phase("replay"):
                graphs.compute(batch, seed)
                return graphs.output, graphs.finish()
        torch.cuda.synchronize()
        start = time.perf_counter()
        graphs.compute(batch, seed)
        norm = graphs.finish()
        torch.cuda.synchronize()
        self._replays.append(time.perf_counter() - start)
        output = graphs.output
        if len(self._replays) == TIMED:
            self._compare()
        return output, norm

    def _compared(self, graphs: _Graphs, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        """A replay, if it loses what the policy does; a plain update, and no graph any more, if it does not."""
        kept = self._kept()
        expected = self._loss(batch, seed)
        self._put_back(kept)
        if expected is None:
            self._drop("no CUDA graph: there is no memory for a step beside it")
            return self._plainly(batch, seed)
        graphs.compute(batch, seed)
        found = float(graphs.output["loss"])
        if not differs(expected, found):
            return graphs.output, graphs.finish()
        self._drop(
            f"no CUDA graph: a loss of {expected:.6g} was {found:.6g} in it, so it depends on numbers that are "
            f"drawn or counted on the host{self._since(graphs)}"
        )
        self._put_back(kept)
        return self._plainly(batch, seed)

    @staticmethod
    def _since(graphs: _Graphs) -> str:
        return (
            ""
            if graphs.replays <= CHECKED
            else f"; up to {AGAIN} steps before this one did not see them change"
        )

    def _compare(self) -> None:
        eager, replayed = (1e3 * statistics.median(times) for times in (self._eager, self._replays))
        if replayed < eager:
            self._settle(
                f"steps are replayed as a CUDA graph: {replayed:.1f} ms instead of {eager:.1f} ms, of which the host "
                f"was busy for {1e3 * statistics.median(self._host):.1f}"
            )
        else:
            self._drop(f"no CUDA graph: a step takes {eager:.1f} ms without and {replayed:.1f} ms with it")

    def _drop(self, note: str) -> None:
        assert self._graphs is not None
        self._graphs.free()
        self._graphs = None
        torch.cuda.empty_cache()
        self._settle(note)

    def _settle(self, note: str) -> None:
        self._settled = True
        self._note(note)

    def _loss(self, batch: Batch, seed: int) -> float | None:
        """What the policy loses on a batch; None where memory does not suffice."""
        torch.manual_seed(seed)
        try:
            return float(self._update.loss(batch)["loss"].detach())
        except torch.OutOfMemoryError:
            return None

    def _kept(self) -> tuple[Statistics, Tensor]:
        """What a forward pass may change: statistics of the policy, and whether something was not finite."""
        return Statistics(self._model), self._optimizer.found_inf.clone()

    def _put_back(self, kept: tuple[Statistics, Tensor]) -> None:
        statistics, bad = kept
        statistics.put_back()
        self._optimizer.found_inf.copy_(bad)


class _Graphs:
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
            self._gradients = optimizer.gradients()  # stay where they are
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
        self.output, self._gradients, self._batch = {}, [], {}

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


def differs(expected: float, found: float) -> bool:
    """Whether a replay lost something else than the policy; a policy that loses NaN itself is for others to notice."""
    return math.isfinite(expected) and not abs(found - expected) <= TOLERANCE * abs(expected)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What happens inside is captured as it would run: nothing is compiled, and transformers builds no masks for it."""
    known = import_utils.is_cuda_stream_capturing
    import_utils.is_cuda_stream_capturing = lambda: False
    try:
        with (
            torch.compiler.set_stance("eager_on_recompile"),
            # threads that load data go on calling the driver meanwhile
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
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
def _without_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
