"""Clocks of a control loop."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Time in seconds since any moment, and waiting."""

    def now(self) -> float:
        """Return the time."""
        ...

    def wait_until(self, moment: float) -> None:
        """Return at a moment, or at once if it has passed."""
        ...


class WallClock:
    """The time of the world."""

    def now(self) -> float:
        """Return the time."""
        return time.monotonic()

    def wait_until(self, moment: float) -> None:
        """Sleep until a moment."""
        if (remaining := moment - time.monotonic()) > 0.0:
            time.sleep(remaining)


class SteppedClock:
    """The time of a simulator, which passes only by waiting: however long a policy thinks, no step is late."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Return the time."""
        return self._now

    def wait_until(self, moment: float) -> None:
        """Let time pass."""
        self._now = max(self._now, moment)


__all__ = ["Clock", "SteppedClock", "WallClock"]
