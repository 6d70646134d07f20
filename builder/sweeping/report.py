"""The files of a sweep that people read: `table.csv`, and `report.html` with parallel coordinates."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import runs
from ..page import note, page, section
from .space import Range, overrides
from .trials import Trial

_HIGH, _TOP, _SIDE = 320, 46, 70
_LEAST, _NARROW = 1080, 190
"""Width of the plot, unless its axes would be less than so far apart."""
_STYLE = """<style>
main { max-width: 1180px; } .coordinates path { fill: none; stroke-width: 1.6; opacity: .75; }
.coordinates path:hover { stroke-width: 4; opacity: 1; } .coordinates .first { stroke-width: 3.5; opacity: 1; }
.coordinates line { stroke: currentColor; opacity: .35; } .coordinates text { fill: currentColor; font-size: 12px; stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
.coordinates .tick { opacity: .7; font-size: 11px; } .wide { overflow-x: auto; }
.wide td, .wide th { white-space: nowrap; } tr.first td { font-weight: 700; } td.why { white-space: normal; min-width: 240px; }
</style>"""


def write_report(
    output: Path,
    trials: Sequence[Trial],
    ranges: Sequence[Range],
    metric: str,
    first: Trial | None,
    *,
    maximize: bool,
    over: bool,
) -> None:
    """Write the table and the page; each appears whole."""
    ordered = sorted(trials, key=lambda trial: _rank(trial, maximize=maximize))
    runs.write_whole(output / "table.csv", _csv(ordered, ranges, metric))
    counts = {status: sum(t.status == status for t in trials) for status in ("finished", "running", "failed")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    body = f'{_STYLE}<h1>Sweep of {escape(output.name)}</h1><p class="sub">{told}; {escape(metric)}, {"higher" if maximize else "lower"} is better</p>'
    if first is not None:
        flags = " ".join(f"-o '{change}'" for change in overrides(first.values))
        best = f"trial {first.number}: {metric} {first.value:.4g} after {first.steps:,} steps"
        body += section("Best", f"<p>{escape(best)}</p><code>policysmith train RECIPE {escape(flags)}</code>")
    measured = [trial for trial in trials if trial.value is not None]
    if measured:
        body += section(
            "Values and results", _coordinates(measured, ranges, metric, first, maximize=maximize)
        )
    body += section("Trials", _table(ordered, ranges, metric, first))
    if not over:
        body += note("The sweep goes on; this page loads itself again.")
    text = page(f"Sweep of {output.name}", body)
    if not over:
        text = text.replace("<head>", '<head><meta http-equiv="refresh" content="15">', 1)
    runs.write_whole(output / "report.html", text)


def _rank(trial: Trial, *, maximize: bool) -> tuple[bool, int, float, int]:
    value = trial.value
    return value is None, -trial.steps, (-1.0 if maximize else 1.0) * (value or 0.0), trial.number


def _csv(trials: Sequence[Trial], ranges: Sequence[Range], metric: str) -> str:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["trial", "status", *(one.path for one in ranges), "steps", metric, "seconds", "error"])
    for trial in trials:
        values = [_spelled(trial.values[one.path]) for one in ranges]
        value = "" if trial.value is None else repr(trial.value)
        rows.writerow(
            [trial.number, trial.status, *values, trial.steps, value, f"{trial.seconds:.1f}", trial.error]
        )
    return stream.getvalue()


def _table(trials: Sequence[Trial], ranges: Sequence[Range], metric: str, first: Trial | None) -> str:
    heads = ["trial", *(one.path for one in ranges), "steps", metric, "seconds", "status"]
    lines = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4g}"
        cells = [str(trial.number), *(_spelled(trial.values[one.path]) for one in ranges)]
        cells += [f"{trial.steps:,}", value, f"{trial.seconds:,.0f}"]
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        told = f"{trial.status}: {trial.error}" if trial.error else trial.status
        why = f'<td class="why">{escape(told)}</td>'
        lines.append(f"{'<tr class=first>' if trial is first else '<tr>'}{row}{why}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _coordinates(
    trials: Sequence[Trial], ranges: Sequence[Range], metric: str, first: Trial | None, *, maximize: bool
) -> str:
    """Return parallel coordinates: an axis a path, and one for the metric; a line a trial, blue the better."""
    results = [trial.value for trial in trials if trial.value is not None]
    low, high = min(results), max(results)
    apart = max(_NARROW, (_LEAST - 2 * _SIDE) // len(ranges))
    width = 2 * _SIDE + apart * len(ranges)
    parts = [
        f'<svg class="coordinates" viewBox="0 0 {width} {_HIGH + 2 * _TOP}" style="min-width:{min(width, 720)}px;max-width:{width}px">'
    ]
    spread = (high - low) or 1.0
    for trial in sorted(trials, key=lambda trial: (trial is first, trial.number)):
        assert trial.value is not None
        share = (trial.value - low) / spread
        heights = [*(_share(one, trial.values[one.path]) for one in ranges), share if high > low else 0.5]
        points = " L".join(
            f"{_SIDE + apart * place} {_height(height):.1f}" for place, height in enumerate(heights)
        )
        good = share if maximize else 1.0 - share
        label = f"trial {trial.number}: {' '.join(overrides(trial.values))}, {metric} {trial.value:.4g}"
        style = ' class="first"' if trial is first else ""
        parts.append(
            f'<path{style} stroke="hsl({20 + 195 * good:.0f} 75% 50%)" d="M{points}"><title>{escape(label)}</title></path>'
        )
    axes = [(one.path.rpartition(".")[2], one.path, _ticks(one)) for one in ranges]
    ends = [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.5, f"{low:.4g}")]
    for place, (name, title, ticks) in enumerate([*axes, (metric, metric, ends)]):
        x = _SIDE + apart * place
        parts.append(f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{_TOP + _HIGH}"/>')
        parts.append(
            f'<text x="{x}" y="{_TOP - 16}" text-anchor="middle">{escape(name)}<title>{escape(title)}</title></text>'
        )
        for share, text in ticks:
            parts.append(f'<text class="tick" x="{x + 6}" y="{_height(share) + 4:.1f}">{escape(text)}</text>')
    return f'<div class="wide">{"".join(parts)}</svg></div>'


def _height(share: float) -> float:
    return _TOP + _HIGH * (1.0 - share)


def _share(one: Range, value: Any) -> float:
    """Return the place of a value on its axis, from 0 to 1."""
    if one.choices:
        return one.choices.index(value) / max(1, len(one.choices) - 1)
    if one.is_log:
        return (math.log(value) - math.log(one.low)) / (math.log(one.high) - math.log(one.low))
    return (float(value) - one.low) / (one.high - one.low)


def _ticks(one: Range) -> list[tuple[float, str]]:
    if one.choices:
        return [(_share(one, choice), _spelled(choice)[:24]) for choice in one.choices]
    return [(share, f"{one.at(share):.3g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
