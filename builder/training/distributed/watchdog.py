"""The end of a run of several processes in which one hangs, with its name."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ....schemas.terminal import printable
from ... import compat

_CODE = 5
"""Exit code of a failed run; see `schemas/console.py`."""
_GRACE = 5.0
"""Seconds for processes to tell each other which step they are in."""
_LAST_WORDS = 2.0
"""Seconds between a report and the exit; an earlier exit fails the peers' collectives before they report too."""


class Watchdog:
    """A limit on the time of what all processes do together; a process that exceeds it ends, as it cannot go on alone."""

    def __init__(self, minutes: float | None, rank: int, processes: int) -> None:
        """Allow `minutes` for anything that is watched; None is no limit."""
        self._minutes, self._rank, self._processes = minutes, rank, processes
        self._deadline = float("inf")
        self._step = 0
        self._watches = minutes is not None and processes > 1
        if self._watches:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Watch a step while the context is active."""
        self._step = step
        if self._minutes is not None:
            self._deadline = time.monotonic() + 60.0 * self._minutes
        try:
            yield
        finally:
            self._deadline = float("inf")

    def end(self) -> None:
        """Stop watching."""
        self._watches = False

    def _watch(self) -> None:
        while self._watches:
            time.sleep(0.5)
            if time.monotonic() > self._deadline:
                self._report()

    def _report(self) -> None:
        cursor = "\x1b[?25h" * sys.stderr.isatty()
        os.write(2, f"{cursor}error: {printable(self._diagnosis())}\n".encode())
        time.sleep(_LAST_WORDS)
        os._exit(_CODE)

    def _diagnosis(self) -> str:
        waited = f"process {self._rank} has waited {self._minutes:g} minutes in step {self._step}{_main_thread_at()}"
        cure = (
            "see its output; `training.timeout_minutes` is how long a step may take, and `--resume` goes on"
        )
        try:
            steps = self._others()
        except (RuntimeError, OSError) as error:
            return f"{waited}, and other processes cannot be asked where they are ({error}); {cure}"
        silent = [rank for rank in range(self._processes) if rank not in steps]
        behind = [rank for rank, step in steps.items() if step < max(steps.values())]
        if silent:
            return f"{waited}: process {', '.join(map(str, silent))} does not answer; {cure}"
        if behind:
            return f"{waited}: process {', '.join(map(str, behind))} is behind, in step {min(steps.values())}; {cure}"
        return f"{waited}, and so have all others; {cure}"

    def _others(self) -> dict[int, int]:
        """Return the steps of the processes that answer."""
        store = compat.process_store()
        keys = {rank: f"policysmith/hung/{rank}" for rank in range(self._processes)}
        store.set(keys[self._rank], str(self._step))
        time.sleep(_GRACE)
        return {rank: int(store.get(key)) for rank, key in keys.items() if store.check([key])}


def _main_thread_at() -> str:
    """Return the line of Python at which the main thread is, as " at file:line, in function"."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return ""
    code = frame.f_code
    return f" at {code.co_filename}:{frame.f_lineno}, in {code.co_name}"
