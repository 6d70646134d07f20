"""What a run writes down: one JSON line and one TensorBoard point per log interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter


class Reporter(Protocol):
    """Is told of a run as it goes. Steps count finished updates."""

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


class FileLog:
    """`log.jsonl` and `tensorboard/` in the run's directory."""

    def __init__(self, run: Path) -> None:
        self._lines = (run / "log.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"))

    def start(self, step: int, steps: int) -> None:
        """Nothing to write yet."""

    def advance(self, step: int) -> None:
        """Nothing to write."""

    def log(self, step: int, values: dict[str, float]) -> None:
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def note(self, message: str) -> None:
        self._lines.write(json.dumps({"note": message}) + "\n")

    def close(self) -> None:
        self._lines.close()
        self._board.close()
