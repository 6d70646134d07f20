"""The trials of a sweep on disk: `trials/0003/` is a run, with a `trial.json` beside its files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..training.record import entries
from .space import Values

Status = Literal["running", "finished", "failed"]


@dataclass
class Trial:
    """A run of a sweep. `results` are values of the metric, by the steps that were asked for."""

    number: int
    values: Values
    status: Status = "running"
    results: dict[str, float] = field(default_factory=dict)
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
    made = home / ".trial.json"
    made.write_text(json.dumps(asdict(trial), indent=2) + "\n")
    made.replace(home / "trial.json")


def load(sweep: Path) -> list[Trial]:
    """Return the trials of a sweep, in order."""
    return [Trial(**json.loads(path.read_text())) for path in sorted(sweep.glob("trials/*/trial.json"))]


def measured(run: Path, metric: str) -> float | None:
    """Return the value of a metric at its last step in the log of a run; None if it has none that is finite."""
    found: dict[int, Any] = {
        entry["step"]: entry[metric] for entry in entries(run / "log.jsonl") if metric in entry
    }
    value = found[max(found)] if found else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
