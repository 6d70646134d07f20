"""Updates that are replayed as CUDA graphs, where the GPU would otherwise wait for the host.

A small policy's step is thousands of launches of some microseconds each, and a host that launches them one by
one is slower than the GPU that runs them. A graph launches them all at once. Whether that pays is found out
by trying:

    Eager     some updates to warm up, in which layers are compiled; then some timed: is the host busy for most of the time?
    Capture   one update during which waiting for the GPU is an error, because what waits cannot be captured; then a capture
    Trial     replays, the first of which are checked against the loss of the policy without a graph: are they faster?
    Replay    replays, of which one in a thousand is checked

Several processes go through the same stages at the same steps: each replays graphs of its own batch and
gradients, which are added up in between, or none does. A process alone can lose its graph later; it then
computes eagerly beside the others.

A graph repeats what comes out the same for every batch. Random numbers of the GPU are drawn from the seed
that is set before a replay; numbers drawn on the host would be repeated, which the checks notice.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...capture import CaptureError, error_on_sync
from ..distributed.collectives import Peers
from ..update import Batch, Output, Update
from .cuda_graph import CapturedUpdate

Result = tuple[Output, Tensor]
"""Losses of an update and the norm of its gradients, valid until the next update."""


@dataclass(frozen=True)
class Settings:
    """Counts of updates, and thresholds."""

    warm: int = 10
    timed: int = 5
    checked: int = 2
    """Replays that are checked before any is timed."""
    again: int = 1000
    """Replays from one check to the next, later."""
    unfit: int = 20
    """Batches that may fail to fit a graph before it is given up, if they outnumber those that fit."""
    busy: float = 0.4
    """Share of a step's time for which the host must be busy; below, it is far enough ahead that the GPU never waits."""

    @property
    def first_replay(self) -> int:
        """Updates before the first replay."""
        return self.warm + self.timed + 1


TOLERANCE = 0.01
"""Relative difference of a loss that kernels may cause by summing in another order from run to run."""


class Stage(Protocol):
    """A way to make updates, until `next` returns another one."""

    def take(self, batch: Batch, seed: int) -> Result: ...

    def next(self) -> Stage: ...


class StepGraph:
    """Updates of one batch each, made by graphs once these are known to be faster."""

    def __init__(
        self, update: Update, peers: Peers, note: Callable[[str], None], settings: Settings | None = None
    ) -> None:
        self.stage: Stage = Eager(_Context(update, peers, note, settings or Settings()))

    def __call__(self, batches: Sequence[Batch], seeds: Sequence[int]) -> tuple[list[Output], Tensor]:
        """Update the weights as `Update` does."""
        [batch], [seed] = batches, seeds
        output, norm = self.stage.take(batch, seed)
        self.stage = self.stage.next()
        return [output], norm


@dataclass(frozen=True)
class _Context:
    """Objects that all stages use."""

    update: Update
    peers: Peers
    note: Callable[[str], None]
    settings: Settings

    def eager(self, batch: Batch, seed: int) -> Result:
        """Update the weights, with gradients added up during the backward pass."""
        [output], norm = self.update([batch], [seed])
        return output, norm

    def eager_beside_replays(self, batch: Batch, seed: int) -> Result:
        """Update the weights, with gradients added up after the backward pass, as in a replay."""
        torch.manual_seed(seed)
        return self.finish(self.update.own_gradients(batch))

    def finish(self, output: Output) -> Result:
        """Add up the gradients of all processes and update the weights."""
        self.update.exchange(self.update.optimizer.gradients())
        norm = self.update.step()
        self.update.optimizer.zero_grad()
        return output, norm

    def share_buffers(self) -> None:
        """Give all processes the buffers of the first."""
        self.peers.share(self.update.policy.buffers())

    def milliseconds(self, *times: list[float]) -> list[float]:
        """Return the median of each list of seconds, in milliseconds, averaged over processes."""
        return self.peers.mean(*(1e3 * statistics.median(seconds) for seconds in times))


@dataclass
class _Times:
    """Durations of updates."""

    host: list[float]
    """Seconds that the host was busy, without a graph."""
    eager: list[float]
    replayed: list[float]


class Eager:
    """Updates without a graph; for good if `final`."""

    def __init__(self, context: _Context, *, final: bool = False) -> None:
        self._context, self._final = context, final
        self._taken = 0
        self.times = _Times([], [], [])

    def take(self, batch: Batch, seed: int) -> Result:
        self._taken += 1
        if self._final or self._taken <= self._context.settings.warm:
            return self._context.eager(batch, seed)
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = self._context.eager(batch, seed)
        self.times.host.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        self.times.eager.append(time.perf_counter() - start)
        return result

    def next(self) -> Stage:
        context = self._context
        if self._final or self._taken < context.settings.warm + context.settings.timed:
            return self
        host, step = context.milliseconds(self.times.host, self.times.eager)
        if host >= context.settings.busy * step:
            return Capture(context, self.times)
        context.note(f"no CUDA graph: the host is busy for {host:.1f} of {step:.1f} ms of a step")
        return Eager(context, final=True)


class Capture:
    """One update, and its capture."""

    def __init__(self, context: _Context, times: _Times) -> None:
        self._context, self._times = context, times
        self._next: Stage = Eager(context, final=True)

    def take(self, batch: Batch, seed: int) -> Result:
        context = self._context
        context.share_buffers()
        restore = context.update.snapshot()
        output = self._without_waiting(batch, seed)
        if not context.peers.agree(output is not None):
            context.note("no CUDA graph: a step waits for the GPU")
            context.update.optimizer.zero_grad()
            restore()
            return context.eager(batch, seed)
        assert output is not None
        result = context.finish(output)
        graphs, failure = None, "another process failed"
        try:
            graphs = CapturedUpdate(context.update, batch, seed)
        except CaptureError as error:
            failure = str(error)
        if context.peers.agree(graphs is not None):
            self._next = Trial(context, graphs, self._times)
        else:
            _free(graphs)
            context.note(f"no CUDA graph: a step could not be captured ({failure})")
        return result

    def next(self) -> Stage:
        return self._next

    def _without_waiting(self, batch: Batch, seed: int) -> Output | None:
        """Compute the gradients of this process; return None if an operation waits for the GPU."""
        torch.manual_seed(seed)
        try:
            with error_on_sync():
                return self._context.update.own_gradients(batch)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return None


class Replay:
    """Replayed updates, of which some are checked; eager ones if this process has no graph any more."""

    def __init__(self, context: _Context, graphs: CapturedUpdate | None) -> None:
        self._context, self._graphs = context, graphs
        self._taken = self._unfit = 0

    def take(self, batch: Batch, seed: int) -> Result:
        self._taken += 1
        context, settings = self._context, self._context.settings
        context.share_buffers()
        if self._graphs is None:
            return context.eager_beside_replays(batch, seed)
        if not self._graphs.fits(batch):
            self._count_unfit(self._graphs)
            return context.eager_beside_replays(batch, seed)
        if self._graphs.replays < settings.checked or self._graphs.replays % settings.again == 0:
            return self._checked(self._graphs, batch, seed)
        return self._replayed(self._graphs, batch, seed)

    def next(self) -> Stage:
        if self._taken % self._context.settings.again == 0 and self._context.peers.agree(
            self._graphs is None
        ):
            return Eager(self._context, final=True)
        return self

    def _replayed(self, graphs: CapturedUpdate, batch: Batch, seed: int) -> Result:
        with self._context.update.phase("replay"):
            graphs.compute(batch, seed)
            return self._finished(graphs)

    def _finished(self, graphs: CapturedUpdate) -> Result:
        self._context.update.exchange(graphs.gradients)
        return graphs.output, graphs.finish()

    def _checked(self, graphs: CapturedUpdate, batch: Batch, seed: int) -> Result:
        """Replay an update if its loss is that of the policy; drop the graph and update eagerly if it is not."""
        restore = self._context.update.snapshot()
        expected = self._eager_loss(batch, seed)
        restore()
        if expected is None:
            self._drop("there is no memory for a step beside it")
            return self._context.eager_beside_replays(batch, seed)
        graphs.compute(batch, seed)
        found, settings = float(graphs.output["loss"]), self._context.settings
        if not differs(expected, found):
            return self._finished(graphs)
        late = f"; up to {settings.again} steps before this one did not see them change"
        self._drop(
            f"a loss of {expected:.6g} was {found:.6g} in it, so it depends on numbers that are drawn or counted on the "
            f"host{late if graphs.replays > settings.checked else ''}"
        )
        restore()
        return self._context.eager_beside_replays(batch, seed)

    def _eager_loss(self, batch: Batch, seed: int) -> float | None:
        """Return the policy's loss on a batch; None if memory does not suffice."""
        torch.manual_seed(seed)
        try:
            return float(self._context.update.forward(batch)["loss"].detach())
        except torch.OutOfMemoryError:
            return None

    def _count_unfit(self, graphs: CapturedUpdate) -> None:
        self._unfit += 1
        if self._unfit > max(self._context.settings.unfit, graphs.replays):
            self._drop(
                f"of {self._unfit + graphs.replays} batches, {self._unfit} had other sizes or texts than the one that it "
                "was made of"
            )

    def _drop(self, reason: str) -> None:
        _free(self._graphs)
        self._graphs = None
        self._context.note(f"no CUDA graph: {reason}")


class Trial(Replay):
    """Replays that are timed, until all processes have timed some."""

    def __init__(self, context: _Context, graphs: CapturedUpdate | None, times: _Times) -> None:
        super().__init__(context, graphs)
        self.times = times

    def next(self) -> Stage:
        context, settings = self._context, self._context.settings
        if self._taken % (settings.checked + settings.timed):
            return self
        if not context.peers.agree(self._graphs is not None):
            if self._graphs is not None:
                self._drop("another process has none")
            return Eager(context, final=True)
        if not context.peers.agree(len(self.times.replayed) >= settings.timed):
            return self
        return self.verdict()

    def verdict(self) -> Stage:
        """Choose the faster stage, by the times of all processes."""
        times, context = self.times, self._context
        eager, replayed, host = context.milliseconds(times.eager, times.replayed, times.host)
        if replayed >= eager:
            self._drop(f"a step takes {eager:.1f} ms without and {replayed:.1f} ms with it")
            return Eager(context, final=True)
        between = ", and gradients are added up between its halves" if context.peers.several else ""
        context.note(
            f"steps are replayed as a CUDA graph{between}: {replayed:.1f} ms instead of {eager:.1f} ms, of which the "
            f"host was busy for {host:.1f}"
        )
        return self.settled()

    def settled(self) -> Replay:
        """Return the stage that goes on with the same graphs."""
        replay = Replay(self._context, self._graphs)
        replay._unfit = self._unfit
        return replay

    def _replayed(self, graphs: CapturedUpdate, batch: Batch, seed: int) -> Result:
        torch.cuda.synchronize()
        start = time.perf_counter()
        graphs.compute(batch, seed)
        result = self._finished(graphs)
        torch.cuda.synchronize()
        self.times.replayed.append(time.perf_counter() - start)
        return result


def _free(graphs: CapturedUpdate | None) -> None:
    if graphs is not None:
        graphs.free()
    torch.cuda.empty_cache()


def differs(expected: float, found: float) -> bool:
    """Return whether a replayed loss is not that of the policy; a policy's own NaN is none of its business."""
    return math.isfinite(expected) and not abs(found - expected) <= TOLERANCE * abs(expected)
