"""What a run writes down: one JSON line and one TensorBoard point per log interval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from torch.utils.tensorboard import SummaryWriter


class Reporter(Protocol):
    """Is told of a run as it goes. Steps count finished updates."""

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


class FileLog:
    """Writes what a run is (`run.json`, `recipe.yaml`) and how it goes (`log.jsonl`, `tensorboard/`).

    Nothing is written before the run starts, so that a refused `--resume` leaves the directory as it was.
    """

    def __init__(self, run: Path, description: Mapping[str, Any], recipe_text: str | None) -> None:
        self._run, self._description, self._recipe_text = run, description, recipe_text
        self._lines: TextIO | None = None
        self._board: SummaryWriter | None = None

    def start(self, step: int, steps: int) -> None:
        self._run.mkdir(parents=True, exist_ok=True)
        (self._run / "run.json").write_text(json.dumps(self._description, indent=2) + "\n")
        if self._recipe_text is not None:
            (self._run / "recipe.yaml").write_text(self._recipe_text)
        self._lines = (self._run / "log.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(self._run / "tensorboard"))

    def advance(self, step: int) -> None:
        """Nothing to write."""

    def log(self, step: int, values: dict[str, float]) -> None:
        assert self._board is not None
        self._write({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def note(self, message: str) -> None:
        self._write({"note": message})

    def close(self) -> None:
        if self._lines is not None and self._board is not None:
            self._lines.close()
            self._board.close()

    def _write(self, line: dict[str, Any]) -> None:
        assert self._lines is not None
        self._lines.write(json.dumps(line) + "\n")
