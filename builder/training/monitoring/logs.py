"""Reporters of a run: the interface, and the files of the run."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from ....schemas.errors import TrainingError
from ... import runs

_logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """A listener to the progress of a run. Steps count finished updates."""

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


class Reporters:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = reporters

    def start(self, step: int, steps: int) -> None:
        """Begin at a step of so many."""
        for reporter in self._reporters:
            reporter.start(step, steps)

    def advance(self, step: int) -> None:
        """Report a finished update."""
        for reporter in self._reporters:
            reporter.advance(step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Report measurements up to a step."""
        for reporter in self._reporters:
            reporter.log(step, values)

    def note(self, message: str) -> None:
        """Report a line of text."""
        for reporter in self._reporters:
            reporter.note(message)


class FileLog:
    """The log of a run in its directory: `run.json` and `recipe.yaml`, and `log.jsonl`.

    Nothing is written before the run starts, so that a refused `--resume` leaves the directory unchanged.
    Methods raise TrainingError if a file cannot be written.
    """

    def __init__(self, run: Path, description: Mapping[str, Any], recipe_text: str) -> None:
        self._run, self._description, self._recipe_text = run, description, recipe_text
        self._lines: TextIO | None = None
        self._open = contextlib.ExitStack()

    def start(self, step: int, steps: int) -> None:
        with self._explained():
            self._run.mkdir(parents=True, exist_ok=True)
            (self._run / runs.DESCRIPTION).write_text(json.dumps(self._description, indent=2) + "\n")
            (self._run / runs.RECIPE).write_text(self._recipe_text)
            self._lines = self._open.enter_context((self._run / runs.LOG).open("a", buffering=1))

    def advance(self, step: int) -> None:
        """Write nothing."""

    def log(self, step: int, values: dict[str, float]) -> None:
        with self._explained():
            self._write({"step": step, **values})

    def note(self, message: str) -> None:
        with self._explained():
            self._write({"note": message})

    def close(self) -> None:
        """Close the files."""
        try:
            self._open.close()
        except OSError as error:  # the run is over, and may have ended for the same reason
            _logger.warning("the log in %s is incomplete (%s)", self._run, error.strerror or error)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"the log in {self._run} cannot be written ({error.strerror or error}); make room or set its permissions "
                "right, and go on with `--resume`"
            ) from error

    def _write(self, line: dict[str, Any]) -> None:
        assert self._lines is not None
        self._lines.write(json.dumps(line) + "\n")
