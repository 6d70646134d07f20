"""The trials of a sweep on disk: `trials/0003/` is a run, with a `trial.json` beside its files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ...schemas.errors import CheckpointError
from ...schemas.questions.runs import entries
from .. import runs
from .space import Values

Status = Literal["running", "finished", "failed"]


@dataclass
class Trial:
    """A run of a sweep.

    Attributes:
        results: Values of the metric, by the steps that were asked for.
        asked: Steps that the latest training was asked for.
    """

    number: int
    values: Values
    status: Status = "running"
    results: dict[str, float] = field(default_factory=dict)
    asked: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def value(self) -> float | None:
        """The value after the most steps; None without any."""
        return self.results[max(self.results, key=int)] if self.results else None

    @property
    def steps(self) -> int:
        """The most steps with a value."""
        return max(map(int, self.results), default=0)


def directory(sweep: Path, number: int) -> Path:
    """Return the directory of a trial, which is that of its run."""
    return sweep / "trials" / f"{number:04d}"


def save(sweep: Path, trial: Trial) -> None:
    """Write a trial, whole or not at all."""
    home = directory(sweep, trial.number)
    home.mkdir(parents=True, exist_ok=True)
    runs.write_whole(home / "trial.json", json.dumps(asdict(trial), indent=2) + "\n")


def load(sweep: Path) -> list[Trial]:
    """Return the trials of a sweep, in order. Raise CheckpointError if the file of one is damaged."""
    return [_read(path) for path in sorted(sweep.glob("trials/*/trial.json"))]


def _read(path: Path) -> Trial:
    try:
        return TypeAdapter(Trial).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise CheckpointError(
            f"{path} is damaged ({place}: {first['msg']}); remove {path.parent}, and the trial runs again"
        ) from error


def measured(run: Path, metric: str) -> float | None:
    """Return the value of a metric at its last step in the log of a run; None if it has none that is finite."""
    found: dict[int, Any] = {
        entry["step"]: entry[metric] for entry in entries(run / "log.jsonl") if metric in entry
    }
    value = found[max(found)] if found else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
