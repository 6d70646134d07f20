"""Signals that stop a program by an exception, so that it closes its files and restores the terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from .errors import Interrupted

NUMBERS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP


class Signals:
    """Context manager that raises Interrupted for SIGINT, SIGTERM and SIGHUP, or defers them.

    Ignored signals, such as SIGHUP under nohup, stay ignored, and child processes keep their default
    handling. Does nothing outside the main thread, where Python receives no signals.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """First deferred signal."""
        self._deferring = False
        self._process = os.getpid()
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                former = signal.getsignal(number)
                if former is not None and former is not signal.SIG_IGN:
                    self._former[number] = former
                    signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former.clear()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record signals while the context is active; a Ctrl-C after another signal still raises."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not self._deferring or (self.received is not None and number == signal.SIGINT):
            raise Interrupted(number)
        if number == signal.SIGINT and sys.stderr.isatty():
            os.write(2, b"\nstopping after this step; press Ctrl-C again to exit immediately\n")
        self.received = self.received or number
