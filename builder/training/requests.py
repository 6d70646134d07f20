"""Requests to a run while it trains: to stop, by a signal, and to save, by the clock."""

from __future__ import annotations

import signal
import time
from collections import deque
from pathlib import Path

from accelerate import Accelerator

from ...schemas.interrupts import Signals
from ...schemas.recipe import TrainingSection
from .monitoring.meter import Arriving, Health

EVERY, LATER = 4, 2
"""Steps of several GPUs between looks at what processes asked for, and steps after which a look is read."""


class Requests:
    """Lets all processes of a run stop and save after the same steps.

    A process alone does so after the step in which it is asked. Of several, each may be sent the signal, and the main
    one has the clock; they tell each other with the flag of losses that are not finite, which goes round in every step.
    """

    def __init__(
        self, signals: Signals, health: Health, section: TrainingSection, accelerator: Accelerator
    ) -> None:
        self._signals, self._health = signals, health
        minutes = section.save_minutes if section.save_every is None and accelerator.is_main_process else None
        self._seconds = float("inf") if minutes is None else 60.0 * minutes
        """After the last checkpoint, until the next is due."""
        self._several = accelerator.num_processes > 1
        self._last = time.monotonic()
        self._seen: deque[tuple[int, Arriving]] = deque()

    def tell(self) -> None:
        """Before an update: let other processes know what this one is asked for."""
        if self._several:
            self._health.ask(stop=self._signals.received or 0, save=self._due())

    def after(self, step: int) -> tuple[int, bool]:
        """After this many updates: the signal to stop for, or 0, and whether to save. The same for all processes."""
        if not self._several:
            return self._signals.received or 0, self._due()
        gpu = self._health.asked.is_cuda
        if not gpu or step % EVERY == 0:
            flags = dict(zip(("stop", "save"), self._health.asked, strict=True))
            self._seen.append((step, Arriving(flags, self._health.asked.device)))
        if not self._seen or self._seen[0][0] + (LATER if gpu else 0) > step:
            return 0, False
        found = self._seen.popleft()[1].read()
        return int(found["stop"]), bool(found["save"])

    def saved(self) -> None:
        """A checkpoint was written, by all processes."""
        self._last = time.monotonic()
        self._seen.clear()
        self._health.answered()

    def _due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds


def farewell(number: int, step: int, steps: int, saved: Path) -> str:
    """Return the message of a run that a signal stops."""
    name = signal.Signals(number).name
    return f"stopped by {name} after step {step} of {steps}; `--resume` goes on from {saved}"
