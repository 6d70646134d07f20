"""Lets a trainer take as many steps as another process asks for, and times them as a whole."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass(frozen=True)
class Protocol:
    """How many steps are taken, and what for."""

    loss_steps: int = 200
    """From the start, with the same noise for every trainer: their losses are compared. They compile meanwhile."""
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
            raise ValueError("there must be rounds, steps, and as many compared steps as a log interval has")

    @property
    def total(self) -> int:
        """One more than is taken, so that no trainer comes to its end and saves."""
        return self.loss_steps + self.rounds * (self.warmup + self.steps) + 1


class Stop(Exception):
    """No more steps are asked for."""


class Pace:
    """Is told of every step that ended; after the last of those asked for it waits for the next request.

    The device is waited for only there. What other processes may need of its memory is given back while waiting.
    """

    def __init__(self, pipe: Connection, device: torch.device, log_every: int) -> None:
        self._pipe, self._device, self._log_every = pipe, device, log_every
        self._left, self._since = 0, 0.0
        self._interval: list[torch.Tensor] = []
        self.losses: list[Any] = []
        """Means over the log intervals so far, floats or tensors."""
        self.notes: list[str] = []
        """What the trainer says of itself."""

    def begin(self) -> None:
        """The trainer is about to take its first step, with whatever has to be prepared for it."""
        self._wait()

    def see(self, loss: torch.Tensor) -> None:
        """The loss of a step, of a trainer that keeps no means itself. Nothing is read from the device."""
        self._interval.append(loss.detach())
        if len(self._interval) == self._log_every:
            self.losses.append(torch.stack(self._interval).mean())
            self._interval.clear()

    def stepped(self) -> None:
        """A step ended. Raises Stop where no more are wanted."""
        self._left -= 1
        if self._left:
            return
        self._synchronize()
        seconds = time.perf_counter() - self._since
        told = {"seconds": seconds, "losses": self._read(), "notes": self.notes, "peak": self._peak()}
        self._pipe.send(told)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._wait()

    def _wait(self) -> None:
        try:
            asked = self._pipe.recv()
        except EOFError:
            asked = None
        if asked is None:
            raise Stop
        self._left = asked
        self._synchronize()
        self._since = time.perf_counter()

    def _read(self) -> list[float]:
        return [float(loss) for loss in self.losses]

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
