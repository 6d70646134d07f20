"""A table of runs: their progress, their latest values, and the options in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..paths import text_of
from ..yaml.nodes import dotted
from .difference import Side, differences, side

RECORD, LOG = "run.json", "log.jsonl"
_VALUES = ("loss", "validation/loss", "samples_per_second")
_IGNORED = ("name", "output", "meta", "evaluation")
_MOST = 6  # options in which runs differ


@dataclass(frozen=True)
class Run:
    """A run on disk: its directory, the last step of its log, and its latest values."""

    path: Path
    step: int
    values: dict[str, float]


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs that paths name or hold, in order. Raise CheckpointError if there are none."""
    found = []
    for path in paths:
        inner = sorted(path.iterdir()) if path.is_dir() and not (path / RECORD).is_file() else [path]
        found += [_run(each) for each in inner if (each / RECORD).is_file()]
    if not found:
        raise CheckpointError(
            f"no run lies in {', '.join(map(str, paths))}; name runs, or a directory of runs"
        )
    return found


def _run(path: Path) -> Run:
    values, step = dict[str, float](), 0
    for entry in entries(path / LOG):
        step = entry["step"]
        values |= {key: entry[key] for key in _VALUES if isinstance(entry.get(key), int | float)}
    return Run(path, step, values)


def entries(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that have a step, and skip others, such as one that a killed process left unfinished."""
    try:
        lines = text_of(log).splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            yield entry


def table(found: Sequence[Run]) -> list[list[str]]:
    """Return heading and rows: path, step, latest values, and the options in which the runs differ."""
    sides = [_side(run.path) for run in found]
    options = _options([each for each in sides if each is not None])
    values = [key for key in _VALUES if any(key in run.values for run in found)]
    rows = [["run", "step", *values, *map(dotted, options)]]
    for run, one in zip(found, sides, strict=True):
        measured = [f"{run.values[key]:.4g}" if key in run.values else "-" for key in values]
        chosen = ["-" if one is None else _spelled(one, path) for path in options]
        rows.append([str(run.path), f"{run.step:,}", *measured, *chosen])
    return rows


def _side(run: Path) -> Side | None:
    try:
        return side(run)
    except CheckpointError:  # without a checkpoint yet
        return None


def _options(sides: Sequence[Side]) -> list[tuple[Any, ...]]:
    found: dict[tuple[Any, ...], None] = {}
    for other in sides[1:]:
        found |= dict.fromkeys(
            each.path for each in differences(sides[0], other) if each.path[0] not in _IGNORED
        )
    return list(found)[:_MOST]


def _spelled(one: Side, path: Sequence[Any]) -> str:
    value: Any = one.recipe
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return "-"
    return json.dumps(value) if not isinstance(value, str) else value
