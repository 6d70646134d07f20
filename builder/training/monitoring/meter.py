"""Means of losses and the speed of training, measured without making the device wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from .readback import Moment, Readback

_WAIT, _BAD = "wait.seconds", "bad"
"""Names of numbers that are not logged."""


@dataclass(frozen=True)
class Interval:
    """Measurements between two log lines, up to `step` finished updates."""

    step: int
    rate: float
    """Learning rate of the last step."""
    steps: int
    """Timed steps."""
    since: Moment | None
    """Start of the timed steps, if that is not the end of the last interval."""
    first: bool
    """True for the first step of a process, alone."""
    numbers: Readback
    """Means over processes of losses, norms and seconds of waiting for data, and the flag for non-finite values."""


class Meter:
    """Means of the losses, and the speed, since the last log line.

    The first step of a process compiles, tunes and allocates: it is left out of the speed, unless it is
    logged alone.
    """

    def __init__(
        self,
        samples_per_step: int,
        device: torch.device,
        processes: int = 1,
        *,
        flops: int | None = None,
        peak: float | None = None,
    ) -> None:
        """Measure steps of `flops` operations each, if counted, on a device that does `peak` a second."""
        self._samples_per_step, self._device, self._processes = samples_per_step, device, processes
        self._flops, self._peak = flops, peak
        self._start = Moment(device)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._names: list[str] | None = None
        """Names of the means that all processes have."""
        self._wait, self._steps = 0.0, 0
        self._first: Moment | None = None
        """End of the first step, until that is logged."""
        self.taken = 0
        """Steps of this process."""
        self._timed, self._seconds = 0, 0.0
        self.first_step_seconds: float | None = None
        """Duration of the first step, which compiles, once it is logged."""

    @property
    def overall(self) -> float | None:
        """Samples per second after the first step, as logged; None if there was no other step."""
        return self._timed * self._samples_per_step / self._seconds if self._timed else None

    def restart(self) -> None:
        """Leave out of the speed what happened since the last log line, such as saving."""
        self._start = Moment(self._device)

    def time_wait(self, fetch: Callable[[], Any]) -> Any:
        """Return what `fetch` returns, and count the time as waiting for data."""
        start = time.perf_counter()
        value = fetch()
        self._wait += time.perf_counter() - start
        return value

    def add(self, output: dict[str, Tensor]) -> None:
        """Add the scalars of a forward pass to the means."""
        self._accumulate({name: value for name, value in output.items() if value.ndim == 0})

    def count_step(self, norm: Tensor) -> None:
        """Count an update, made from gradients of this norm."""
        self._accumulate({"grad_norm": norm})
        self._steps += 1
        self.taken += 1
        if self.taken == 1:
            self._first = Moment(self._device)

    def interval(self, step: int, rate: float, bad: Tensor) -> Interval:
        """Return the measurements since the last interval, and whether a value was not finite; waits for nothing."""
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        means[_WAIT] = torch.full((), self._wait, dtype=torch.float64, device=self._device)
        numbers = Readback({**self._over_processes(means), _BAD: bad}, self._device)
        alone = self._first is not None and self._steps == 1
        since, self._first = None if alone else self._first, None
        interval = Interval(step, rate, self._steps - (since is not None), since, alone, numbers)
        self._sums, self._counts, self._wait, self._steps = {}, {}, 0.0, 0
        return interval

    def read(self, interval: Interval) -> tuple[dict[str, float], bool]:
        """Return an interval's means and speed, and whether all was finite; intervals are read in order."""
        values, end = interval.numbers.read(), interval.numbers.moment
        finite, wait = values.pop(_BAD) == 0.0, values.pop(_WAIT)
        elapsed = max(end.since(interval.since or self._start), 1e-9)
        whole = max(end.since(self._start), 1e-9)
        if interval.since is not None or interval.first:
            self.first_step_seconds = (interval.since or end).since(self._start)
        self._start = end
        if not interval.first:
            self._timed, self._seconds = self._timed + interval.steps, self._seconds + elapsed
        values["samples_per_second"] = interval.steps * self._samples_per_step / elapsed
        values["data_wait"] = wait / whole
        if self._flops:
            rate = self._flops * interval.steps / elapsed
            values["tflops"] = rate / 1e12
            if self._peak is not None:
                values["mfu"] = rate / self._peak
        values["lr"] = interval.rate
        return values, finite

    def _accumulate(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            known = self._sums.get(name)
            self._sums[name] = value.detach().clone() if known is None else known + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def _over_processes(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return means over all processes, of those that each process has from the first interval on."""
        if self._processes == 1:
            return means
        if self._names is None:
            found = [set(names) for names in gather_object([sorted(means)])]
            self._names = sorted(set.intersection(*found))
        missing = torch.full((), torch.nan, device=self._device)
        held = [means.get(name, missing).to(self._device, torch.float64) for name in self._names]
        together = torch.stack(held)
        torch.distributed.all_reduce(together)
        return dict(zip(self._names, together / self._processes, strict=True))
