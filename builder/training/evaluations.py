"""Rollouts during training: a process of its own evaluates one checkpoint at a time, and the run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import runs

_OF_THIS_RUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)


@dataclass(frozen=True)
class Success:
    """The result of an evaluation of the checkpoint after `step` updates."""

    step: int
    rate: float
    text: str


@dataclass
class _Request:
    step: int
    checkpoint: Path
    pin: runs.Handle
    process: subprocess.Popen[bytes] | None = None


class Evaluations:
    """Evaluations of checkpoints, one at a time, which are not pruned meanwhile.

    One more waits. If a third is due, the one that waits is skipped.
    """

    def __init__(self, run: Path, device: str, note: Callable[[str], None], *, allow_imports: bool) -> None:
        """Evaluate checkpoints of a run on a device; `note` receives lines about what is skipped or fails."""
        self._run, self._device, self._note, self._imports = run, device, note, allow_imports
        self._running: _Request | None = None
        self._waiting: _Request | None = None

    @property
    def busy(self) -> bool:
        """True while one runs or waits."""
        return self._running is not None

    def request(self, step: int) -> None:
        """Evaluate the checkpoint after `step` updates as soon as no other is evaluated."""
        checkpoint = runs.checkpoint_path(self._run, step)
        pin = runs.pin(checkpoint)
        if pin is None:
            return
        if self._waiting is not None:
            self._note(
                f"the evaluation of step {self._waiting.step} is skipped: the one of step {step} is due"
            )
            self._waiting.pin.close()
        self._waiting = _Request(step, checkpoint, pin)
        self._next()

    def finished(self) -> Success | None:
        """Return the result of the evaluation that ended since the last call, if any. The next one begins."""
        one = self._running
        if one is None or one.process is None or (code := one.process.poll()) is None:
            return None
        result = self._read(one) if code == 0 else None
        if result is None:
            self._note(
                f"the evaluation of step {one.step} failed ({self._last_words(one)}); the run continues"
            )
        self._close(one)
        self._running = None
        self._next()
        return result

    def end(self) -> None:
        """End what runs, with its rollouts."""
        for one in (self._running, self._waiting):
            if one is not None:
                self._close(one)
        self._running = self._waiting = None

    def _next(self) -> None:
        if self._running is not None or self._waiting is None:
            return
        one, self._waiting = self._waiting, None
        home = self._home(one)
        home.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "policysmith.builder.evaluation.background"]
        words += [str(one.checkpoint), str(home), self._device, *(["imports"] if self._imports else [])]
        kept = {name: value for name, value in os.environ.items() if name not in _OF_THIS_RUN}
        with (home / "evaluation.log").open("wb") as output:
            one.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # closes with this process
                stdout=output,
                stderr=output,
                env=kept,
                start_new_session=True,
            )
        self._running = one

    def _home(self, one: _Request) -> Path:
        return self._run / "evaluation" / one.checkpoint.name

    def _read(self, one: _Request) -> Success | None:
        try:
            found: dict[str, Any] = json.loads((self._home(one) / "result.json").read_text())["closed_loop"]
            low, high = (100.0 * end for end in found["interval_95"])
            count = f"{found['successes']} of {found['n']} rollouts"
            text = f"step {one.step}: {count} succeed, 95 % interval {low:.0f} to {high:.0f} %"
            return Success(one.step, float(found["success_rate"]), text)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _last_words(self, one: _Request) -> str:
        with suppress(OSError):
            lines = (self._home(one) / "evaluation.log").read_text(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return "no output"

    def _close(self, one: _Request) -> None:
        process = one.process
        if process is not None:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(5.0)
                except subprocess.TimeoutExpired:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.stdin is not None:
                process.stdin.close()
        one.pin.close()
