"""Replays an update of the weights as CUDA graphs, where the GPU would wait for the host otherwise.

A small policy's step is thousands of launches of some microseconds each, and a host that launches them one by one is
slower than the GPU that runs them. A graph launches them all at once. Whether that pays is found out by trying:

    WARM updates as they are, in which layers are compiled
    TIMED updates, each waited for: is the host busy for most of the time?
    one update that may not wait for the GPU, because what waits cannot be captured
    capture; the first CHECKED replays must lose what the policy loses without a graph
    TIMED replays: are they faster?
    every AGAIN replays one is checked again

Several processes try at the same steps, and go the same way: each replays graphs of its own batch and gradients, which are
added up in between, or none does.

What can be captured is what comes out the same for every batch: random numbers of the GPU do, because a graph draws them
from the seed that is set before it is replayed; numbers drawn on the host would not, which the check notices.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..distributed.collectives import Peers
from ..optim.fused_adamw import FusedAdamW
from .cuda_graph import Batch, CapturedUpdate, CaptureFailed, Output, Update, without_waiting
from .module_patches import Statistics

WARM, TIMED, CHECKED, AGAIN = 10, 5, 2, 1000
TRIED = WARM + TIMED + 1
"""The update after which steps are replayed."""
OTHERS = 20
"""Batches that a graph does not hold for, of which there must be more than that it holds for, before it is given up."""
BUSY = 0.4
"""Share of a step's time for which the host must be busy; below, it is far enough ahead that the GPU never waits."""
TOLERANCE = 0.01
"""Relative difference of a loss that kernels may make, which sum in another order from run to run."""


class StepGraph:
    """Makes updates, by graphs once these are known to be faster."""

    def __init__(
        self,
        update: Update,
        model: nn.Module,
        optimizer: FusedAdamW,
        peers: Peers,
        note: Callable[[str], None],
    ) -> None:
        self._update, self._model, self._optimizer = update, model, optimizer
        self._peers, self._note = peers, note
        self._taken = 0
        self._others = 0
        self._settled = False
        self._apart = False
        """Whether processes exchange gradients after their passes instead of meanwhile; all or none do."""
        self._undecided = False
        """Whether graphs are on trial; for all processes or none."""
        self._host: list[float] = []
        self._eager: list[float] = []
        self._replays: list[float] = []
        self._graphs: CapturedUpdate | None = None

    def __call__(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        """Update the weights from a batch; gives losses and norm of the gradients, valid until the next update."""
        self._taken += 1
        if self._apart:
            self._peers.share(self._model.buffers())
        result = self._made(batch, seed)
        if self._undecided and self._taken > TRIED and (self._taken - TRIED) % (CHECKED + TIMED) == 0:
            self._decide()
        elif self._apart and not self._undecided and self._taken % AGAIN == 0:
            self._apart = not self._peers.agree(self._graphs is None)
        return result

    def _made(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        if self._graphs is not None:
            return self._replayed(self._graphs, batch, seed)
        if self._settled or self._taken <= WARM:
            return self._plainly(batch, seed)
        if self._taken < TRIED:
            return self._watched(batch, seed)
        return self._tried(batch, seed)

    def _plainly(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        torch.manual_seed(seed)
        if not self._apart:
            return self._update.together(batch), self._stepped()
        output = self._update.gradients(batch)
        self._update.exchange(self._optimizer.gradients())
        return output, self._stepped()

    def _stepped(self) -> Tensor:
        norm = self._update.step()
        self._optimizer.zero_grad()
        return norm

    def _watched(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = self._plainly(batch, seed)
        self._host.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        self._eager.append(time.perf_counter() - start)
        return result

    def _tried(self, batch: Batch, seed: int) -> tuple[Output, Tensor]:
        host, step = self._peers.mean(
            *(1e3 * statistics.median(times) for times in (self._host, self._eager))
        )
        if host < BUSY * step:
            self._settle(f"no CUDA graph: the host is busy for {host:.1f} of {step:.1f} ms of a step")
            return self._plainly(batch, seed)
        self._peers.share(self._model.buffers())
        kept = self._kept()
        output = self._unwaited(batch, seed)
        if not self._peers.agree(output is not None):
            self._settle("no CUDA graph: a step waits for the GPU")
            self._optimizer.zero_grad()
            self._put_back(kept)
            return self._plainly(batch, seed)
        assert output is not None
        self._update.exchange(self._optimizer.gradients())
        result = output, self._stepped()
        failure = "another process failed"
        try:
            self._graphs = CapturedUpdate(self._update, self._optimizer, batch, seed)
        except CaptureFailed as failed:
            failure = str(failed)
        self._apart = self._undecided = self._peers.agree(self._graphs is not None)
        if not self._apart:
            self._drop(f"no CUDA graph: a step could not be captured ({failure})")
        return result

    def _unwaited(self, batch: Batch, seed: int) -> Output | None:
        """Gradients of this process; None where something waits for the GPU."""
        torch.manual_seed(seed)
        try:
            with without_waiting():
                return self._update.gradients(batch)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return None

    def _replayed(self, graphs: CapturedUpdate, batch: Batch, seed: int) -> tuple[Output, Tensor]:
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
                return graphs.output, self._finished(graphs)
        torch.cuda.synchronize()
        start = time.perf_counter()
        graphs.compute(batch, seed)
        norm = self._finished(graphs)
        torch.cuda.synchronize()
        self._replays.append(time.perf_counter() - start)
        return graphs.output, norm

    def _finished(self, graphs: CapturedUpdate) -> Tensor:
        self._update.exchange(graphs.gradients)
        return graphs.finish()

    def _compared(self, graphs: CapturedUpdate, batch: Batch, seed: int) -> tuple[Output, Tensor]:
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
            return graphs.output, self._finished(graphs)
        self._drop(
            f"no CUDA graph: a loss of {expected:.6g} was {found:.6g} in it, so it depends on numbers that are "
            f"drawn or counted on the host{self._since(graphs)}"
        )
        self._put_back(kept)
        return self._plainly(batch, seed)

    @staticmethod
    def _since(graphs: CapturedUpdate) -> str:
        return (
            ""
            if graphs.replays <= CHECKED
            else f"; up to {AGAIN} steps before this one did not see them change"
        )

    def _decide(self) -> None:
        """Go on with graphs where they are faster over all processes, once each has replayed some."""
        if not self._peers.agree(self._graphs is not None):
            self._undecided = self._apart = False
            if self._graphs is not None:
                self._drop("no CUDA graph: another process has none")
            return
        if not self._peers.agree(len(self._replays) >= TIMED):
            return
        self._undecided = False
        eager, replayed, host = self._peers.mean(
            *(1e3 * statistics.median(times) for times in (self._eager, self._replays, self._host))
        )
        if replayed < eager:
            between = ", and gradients are added up between its halves" if self._peers.several else ""
            self._settle(
                f"steps are replayed as a CUDA graph{between}: {replayed:.1f} ms instead of {eager:.1f} ms, of which the "
                f"host was busy for {host:.1f}"
            )
        else:
            self._apart = False
            self._drop(f"no CUDA graph: a step takes {eager:.1f} ms without and {replayed:.1f} ms with it")

    def _drop(self, note: str) -> None:
        if self._graphs is not None:
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


def differs(expected: float, found: float) -> bool:
    """Whether a replay lost something else than the policy; a policy that loses NaN itself is for others to notice."""
    return math.isfinite(expected) and not abs(found - expected) <= TOLERANCE * abs(expected)
