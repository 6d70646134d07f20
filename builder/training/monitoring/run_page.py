"""`report.html` of a run, which grows while the run goes: its curves, its latest values and its recipe."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ....schemas.questions.runs import entries
from ... import runs
from ...page import note, page, section, table

EVERY = 10.0
"""Least seconds between two versions of the page."""
_MOST = 400
"""Points of a curve that are drawn."""
_WIDE, _HIGH, _LEFT, _LOW = 900, 220, 64, 24
_CURVES = (
    ("Loss", ("loss", "validation/loss")),
    ("Success", ("evaluation/success",)),
    ("Learning rate", ("lr",)),
    ("Samples a second", ("samples_per_second",)),
)
_COLORS = ("#2f7fe0", "#e8833a")
_logger = logging.getLogger(__name__)


class RunPage:
    """A reporter that draws the log of a run. A page that cannot be written is one warning."""

    def __init__(self, run: Path, recipe_text: str) -> None:
        self._run, self._text = run, recipe_text
        self._steps, self._next, self._failed = 0, 0.0, False

    def start(self, step: int, steps: int) -> None:
        self._steps = steps

    def advance(self, step: int) -> None:
        """Draw nothing."""

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._failed or time.monotonic() < self._next:
            return
        self._write(over=False)
        self._next = time.monotonic() + EVERY

    def note(self, message: str) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """Draw the page for the last time."""
        if self._steps and not self._failed:
            self._write(over=True)

    def _write(self, *, over: bool) -> None:
        text = self._page(over=over)
        try:
            runs.write_whole(self._run / runs.REPORT, text)
        except OSError as error:
            self._failed = True
            _logger.warning("%s cannot be written (%s)", self._run / runs.REPORT, error.strerror or error)

    def _page(self, *, over: bool) -> str:
        found: dict[str, dict[int, float]] = {}
        for entry in entries(self._run / runs.LOG):
            for name, value in entry.items():
                if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                    found.setdefault(name, {})[entry["step"]] = value
        step = max((max(points) for points in found.values()), default=0)
        name = self._run.absolute().name
        body = f'<h1>{escape(name)}</h1><p class="sub">step {step:,} of {self._steps:,}</p>'
        for title, names in _CURVES:
            curves = [(each, sorted(found[each].items())) for each in names if each in found]
            if curves:
                body += section(title, f'<div class="plot">{_drawn(curves, max(step, 1))}</div>')
        latest = [[each, f"{max(points):,}", f"{points[max(points)]:.4g}"] for each, points in found.items()]
        body += section("Latest values", table(["value", "step", "latest"], latest))
        body += section("Recipe", f"<pre>{escape(self._text)}</pre>")
        if over:
            return page(name, body)
        body += note("The run goes on; this page loads itself again.")
        return page(name, body).replace("<head>", '<head><meta http-equiv="refresh" content="15">', 1)


def _drawn(curves: Sequence[tuple[str, Sequence[tuple[int, float]]]], last: int) -> str:
    """Return curves as SVG, on a logarithmic axis if they span more than a factor of 30."""
    values = [value for _, points in curves for _, value in points]
    low, high = min(values), max(values)
    logarithmic = low > 0.0 and high > 30.0 * low
    if not logarithmic:
        low = min(low, 0.0)

    def height(value: float) -> float:
        if logarithmic:
            share = math.log(value / low) / math.log(high / low)
        else:
            share = (value - low) / ((high - low) or 1.0)
        return 8.0 + _HIGH * (1.0 - share)

    label = 'fill="currentColor" font-size="12"'
    parts = [f'<svg viewBox="0 0 {_WIDE} {_HIGH + 2 * _LOW}">']
    for value in (low, high):
        y = height(value)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" {label}>{value:.3g}</text>')
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".2"/>'
        )
    for place, (name, points) in enumerate(curves):
        stride = max(1, len(points) // _MOST)
        kept = [*points[::stride], points[-1]]
        line = " ".join(
            f"{_LEFT + (_WIDE - _LEFT) * step / last:.1f},{height(value):.1f}" for step, value in kept
        )
        color = _COLORS[place % len(_COLORS)]
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.8" points="{line}"/>')
        x = _LEFT + 180 * place
        parts.append(f'<text x="{x}" y="{_HIGH + 30}" fill="{color}" font-size="13">{escape(name)}</text>')
    parts.append(f'<text x="{_WIDE}" y="{_HIGH + 30}" text-anchor="end" {label}>step {last:,}</text>')
    return "".join([*parts, "</svg>"])
