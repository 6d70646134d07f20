"""The steps that a trainer takes when another process asks for them, timed as a whole."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass(frozen=True)
class Protocol:
    """Numbers of steps to compare losses and to time."""

    loss_steps: int = 200
    """First steps, with the same noise for every trainer, whose losses are compared; compilation falls into them."""
    rounds: int = 3
    """Timed blocks of every trainer."""
    warmup: int = 10
    """Steps before each block, not timed."""
    steps: int = 50
    """Steps of a block."""
    log_every: int = 10
    """Steps between log entries, of every trainer."""

    def __post_init__(self) -> None:
        if self.loss_steps < self.log_every or min(self.log_every, self.rounds, self.steps) < 1:
            raise ValueError(
                "rounds, steps and log interval must be positive, and compared steps fill a log interval"
            )

    @property
    def total(self) -> int:
        """All steps and one more, so that no trainer reaches its end and saves."""
        return self.loss_steps + self.rounds * (self.warmup + self.steps) + 1


class Stop(Exception):
    """Raised in a trainer when no more steps are wanted."""


class Pace:
    """A counter of a trainer's steps, which waits for the next request after the last step of one.

    Only there does it wait for the device, and release memory that other processes may need.
    """

    def __init__(self, pipe: Connection, device: torch.device, log_every: int) -> None:
        self._pipe, self._device, self._log_every = pipe, device, log_every
        self._left, self._since = 0, 0.0
        self._interval: list[torch.Tensor] = []
        self.losses: list[Any] = []
        """Means over the log intervals so far, floats or tensors."""
        self.notes: list[str] = []
        """Notes of the trainer."""

    def begin(self) -> None:
        """Wait for the first request, before the trainer prepares its first step."""
        self._wait()

    def see(self, loss: torch.Tensor) -> None:
        """Record the loss of a step without reading it, for a trainer that keeps no means itself."""
        self._interval.append(loss.detach())
        if len(self._interval) == self._log_every:
            self.losses.append(torch.stack(self._interval).mean())
            self._interval.clear()

    def stepped(self) -> None:
        """Count a step. Raise Stop if no more are wanted."""
        self._left -= 1
        if self._left:
            return
        self._synchronize()
        seconds = time.perf_counter() - self._since
        answer = {"seconds": seconds, "losses": self._read(), "notes": self.notes, "peak": self._peak()}
        self._pipe.send(answer)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._wait()

    def _wait(self) -> None:
        try:
            request = self._pipe.recv()
        except EOFError:
            request = None
        if request is None:
            raise Stop
        self._left = request
        self._synchronize()
        self._since = time.perf_counter()

    def _read(self) -> list[float]:
        return [float(loss) for loss in self.losses]

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
