"""Requests to a run while it trains: to stop, by a signal, and to save, by the clock."""

from __future__ import annotations

import signal
import time
from collections import deque
from pathlib import Path

from accelerate import Accelerator

from ...schemas.interrupts import Signals
from ...schemas.recipe import TrainingSection
from .monitoring.health import Health
from .monitoring.readback import Readback

EVERY, LATER = 4, 2
"""Steps of several GPUs between readbacks of requests, and steps after which a readback is read."""


class Requests:
    """Requests that all processes of a run meet after the same step.

    A single process meets a request after the step in which it comes. If there are several, any of them may
    receive a signal, and the main process has the clock; the flags of `Health` pass requests on with every
    step.
    """

    def __init__(
        self, signals: Signals, health: Health, section: TrainingSection, accelerator: Accelerator
    ) -> None:
        self._signals, self._health = signals, health
        minutes = section.save_minutes if section.save_every is None and accelerator.is_main_process else None
        self._seconds = float("inf") if minutes is None else 60.0 * minutes
        """Time from one checkpoint to the next."""
        self._several = accelerator.num_processes > 1
        self._last = time.monotonic()
        self._readbacks: deque[tuple[int, Readback]] = deque()

    def publish(self) -> None:
        """Pass the requests of this process on, before an update."""
        if self._several:
            self._health.request(stop=self._signals.received or 0, save=self._save_is_due())

    def after(self, step: int) -> tuple[int, bool]:
        """Return the signal to stop for, or 0, and whether to save, after an update; the same in all processes."""
        if not self._several:
            return self._signals.received or 0, self._save_is_due()
        requests = self._health.requests
        if not requests.is_cuda or step % EVERY == 0:
            flags = dict(zip(("stop", "save"), requests, strict=True))
            self._readbacks.append((step, Readback(flags, requests.device)))
        if not self._readbacks or self._readbacks[0][0] + (LATER if requests.is_cuda else 0) > step:
            return 0, False
        found = self._readbacks.popleft()[1].read()
        return int(found["stop"]), bool(found["save"])

    def saved(self) -> None:
        """Note that all processes wrote a checkpoint."""
        self._last = time.monotonic()
        self._readbacks.clear()
        self._health.clear_save_request()

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds


def stopped_message(number: int, step: int, steps: int, saved: Path) -> str:
    """Return the message of a run that a signal stops."""
    name = signal.Signals(number).name
    return f"stopped by {name} after step {step} of {steps}; `--resume` goes on from {saved}"
