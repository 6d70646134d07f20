"""The record of a run: its validation and evaluation by step, from which the best checkpoint and an early stop follow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...schemas.recipe import EarlyStopSection, Metric

LOWER_IS_BETTER: dict[Metric, bool] = {"validation/loss": True, "evaluation/success": False}


def entries(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log that have a step; a line that a killed process left unfinished is skipped."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            yield entry


class Record:
    """Values of the metrics, by step."""

    def __init__(self, log: Path, until: int) -> None:
        """Read the values up to a step from the log of a run; there may be none yet."""
        self._values: dict[Metric, dict[int, float]] = {metric: {} for metric in LOWER_IS_BETTER}
        for entry in entries(log):
            if entry["step"] <= until:
                self.add(entry["step"], entry)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the metrics among values; those that are not finite never are the best."""
        for metric, known in self._values.items():
            if isinstance(value := values.get(metric), (int, float)):
                worst = math.inf if LOWER_IS_BETTER[metric] else -math.inf
                known[step] = float(value) if math.isfinite(value) else worst

    def has(self, metric: Metric, step: int) -> bool:
        """Return whether a metric is known at a step."""
        return step in self._values[metric]

    def best(self, metric: Metric) -> int | None:
        """Return the step with the best value, the earliest of several; None without any."""
        sign = 1.0 if LOWER_IS_BETTER[metric] else -1.0
        known = self._values[metric]
        return min(known, key=lambda step: (sign * known[step], step), default=None)

    def reason_to_stop(self, section: EarlyStopSection | None) -> str:
        """Return why a run stops early; empty if it does not."""
        if section is None or (best := self.best(section.metric)) is None:
            return ""
        known = self._values[section.metric]
        later = sum(step > best for step in known)
        if later < section.patience:
            return ""
        return (
            f"stopped early: `{section.metric}` was best at step {best}, {known[best]:.4g}, and {later} later values are "
            "no better"
        )
