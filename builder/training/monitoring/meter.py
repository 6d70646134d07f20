"""What a run watches while it trains, without making the device wait for the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ....schemas.errors import TrainingError

_WAIT, _BAD = "wait.seconds", "bad"
"""Names of numbers that are no losses."""


class Moment:
    """When the device has done all that it was told so far."""

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._device = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._device is not None:
            self._device.record()

    def wait(self) -> None:
        """Let the host wait until it has come."""
        if self._device is not None:
            self._device.synchronize()

    def since(self, other: Moment) -> float:
        """Seconds from another moment on; both must have come."""
        if self._device is not None and other._device is not None:
            return float(other._device.elapsed_time(self._device)) / 1e3
        return self._host - other._host


class Arriving:
    """Numbers on their way from the device to the host, which goes on meanwhile."""

    def __init__(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        self._names = list(values)
        together = torch.stack([value.detach().to(device, torch.float64) for value in values.values()])
        self._host = together
        if together.is_cuda:
            self._host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
            self._host.copy_(together, non_blocking=True)
        self.moment = Moment(device)

    def read(self) -> dict[str, float]:
        """The numbers, waited for if they have not arrived."""
        self.moment.wait()
        return dict(zip(self._names, self._host.tolist(), strict=True))


@dataclass(frozen=True)
class Interval:
    """What happened between two log lines, up to `step` finished updates."""

    step: int
    rate: float
    """Learning rate of the last."""
    steps: int
    """Steps that are timed."""
    since: Moment | None
    """When these began, where that is not when the last interval ended."""
    first: bool
    """Whether that is the first step of a process, alone."""
    numbers: Arriving
    """Means of losses and norms and seconds without a batch, over all processes, and whether one was not finite."""


class Health:
    """Notices the first loss or gradient that is not finite, on the device, and stops all updates from there on."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._flags = torch.zeros(3, device=device)
        self._bad, self.asked = self._flags[0], self._flags[1:]
        """`asked` is the signal that a process was sent, and whether a checkpoint is due, on the device."""
        self._told = (0, False)
        self._good = torch.zeros((), dtype=torch.int64, device=device)
        self._start = 0
        optimizer.found_inf = self._bad  # type: ignore[attr-defined]
        optimizer.grad_scale = torch.ones((), device=device)  # type: ignore[attr-defined]

    def begin(self, step: int) -> None:
        """The next update is that of this step."""
        self._start = step

    def see(self, value: Tensor) -> None:
        """A loss, or the norm of the gradients, before the update that follows from it."""
        self._bad.copy_(torch.maximum(self._bad, (~torch.isfinite(value.detach())).float()))

    def ask(self, *, stop: int, save: bool) -> None:
        """Let all processes know, when they next agree, that this one was sent a signal or that a checkpoint is due."""
        if (stop, save) != self._told:
            self._told = stop, save
            self.asked[0].fill_(stop)
            self.asked[1].fill_(float(save))

    def answered(self) -> None:
        """The checkpoint that was due is written."""
        self._told = self._told[0], False
        self.asked[1].zero_()

    def agree(self) -> None:
        """What one process saw, or is asked for, all know."""
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._flags, torch.distributed.ReduceOp.MAX)

    def updated(self) -> None:
        """An update was made, or not, of what was seen."""
        self._good.add_(self._bad == 0)

    @property
    def bad(self) -> Tensor:
        """Not 0 from the first step on that was not finite, on the device."""
        return self._bad

    def first_bad_step(self) -> int | None:
        """The step that was not finite, if there was one; waits for the device."""
        return self._start + int(self._good) if int(self._bad) else None


def not_finite(step: int, samples: list[int], kept: str) -> TrainingError:
    """Return the error for a loss or a gradient that is not finite; `kept` says what is left of the run."""
    some = f"{samples[:8]}{', ...' if len(samples) > 8 else ''}"
    return TrainingError(
        f"the loss or its gradient is not finite at step {step} (samples {some}); {kept}. Look at these samples, or "
        "start a new run with a lower `training.optimizer.lr`, with `training.schedule.warmup`, or with "
        "`training.precision: fp32`"
    )


class Meter:
    """Means of the losses and the speed since the last reading; nothing is read from the device in between.

    The first step of a process compiles, tunes and allocates: it is left out of the speed, unless it is logged alone.
    """

    def __init__(self, samples_per_step: int, device: torch.device, processes: int = 1) -> None:
        self._samples_per_step, self._device, self._processes = samples_per_step, device, processes
        self._since = Moment(device)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._names: list[str] | None = None
        """What all processes take means of."""
        self._wait, self._steps = 0.0, 0
        self._first: Moment | None = None
        """When the first step was done, until that is logged."""
        self.taken = 0
        """Steps of this process."""
        self._timed, self._seconds = 0, 0.0
        self.flops: int | None = None
        """Floating-point operations of a step of one process, where they are counted."""
        self._peak: float | None = None

    def begin(self) -> None:
        """What happened so far was no training."""
        self._since = Moment(self._device)

    def works(self, flops: int, peak: float | None) -> None:
        """A step of one process takes so many operations, of which its device can do `peak` a second."""
        self.flops, self._peak = flops, peak

    @property
    def overall(self) -> float | None:
        """Samples per second of training after the first step, as logged; None where there was no other step."""
        return self._timed * self._samples_per_step / self._seconds if self._timed else None

    def waiting(self, fetch: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = fetch()
        self._wait += time.perf_counter() - start
        return value

    def add(self, output: dict[str, Tensor]) -> None:
        """The scalars of a forward pass."""
        self._take({name: value for name, value in output.items() if value.ndim == 0})

    def stepped(self, norm: Tensor) -> None:
        """An update was made, from gradients of this norm."""
        self._take({"grad_norm": norm})
        self._steps += 1
        self.taken += 1
        if self.taken == 1:
            self._first = Moment(self._device)

    def interval(self, step: int, rate: float, bad: Tensor) -> Interval:
        """What happened since the last one, and whether something was not finite; nothing is waited for."""
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        means[_WAIT] = torch.full((), self._wait, dtype=torch.float64, device=self._device)
        numbers = Arriving({**self._of_all(means), _BAD: bad}, self._device)
        alone = self._first is not None and self._steps == 1
        since, self._first = None if alone else self._first, None
        found = Interval(step, rate, self._steps - (since is not None), since, alone, numbers)
        self._sums, self._counts, self._wait, self._steps = {}, {}, 0.0, 0
        return found

    def read(self, interval: Interval) -> tuple[dict[str, float], bool]:
        """An interval's means and speed, and whether all was finite; intervals are read in order."""
        values, end = interval.numbers.read(), interval.numbers.moment
        finite, wait = values.pop(_BAD) == 0.0, values.pop(_WAIT)
        begin = interval.since or self._since
        elapsed, whole = max(end.since(begin), 1e-9), max(end.since(self._since), 1e-9)
        self._since = end
        if not interval.first:
            self._timed, self._seconds = self._timed + interval.steps, self._seconds + elapsed
        values["samples_per_second"] = interval.steps * self._samples_per_step / elapsed
        values["data_wait"] = wait / whole
        if self.flops:
            rate = self.flops * interval.steps / elapsed
            values["tflops"] = rate / 1e12
            if self._peak is not None:
                values["mfu"] = rate / self._peak
        values["lr"] = interval.rate
        return values, finite

    def rest(self) -> None:
        """What happened since the last reading, such as saving, was no training."""
        self._since = Moment(self._device)

    def _take(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            known = self._sums.get(name)
            self._sums[name] = value.detach().clone() if known is None else known + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def _of_all(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over all processes, of what each of them has from the first interval on."""
        if self._processes == 1:
            return means
        if self._names is None:
            found = [set(names) for names in gather_object([sorted(means)])]
            self._names = sorted(set.intersection(*found))
        lacking = torch.full((), torch.nan, device=self._device)
        held = [means.get(name, lacking).to(self._device, torch.float64) for name in self._names]
        together = torch.stack(held)
        torch.distributed.all_reduce(together)
        return dict(zip(self._names, together / self._processes, strict=True))
