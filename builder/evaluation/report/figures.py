"""Plots of an evaluation, as PNG on white or as SVG in the colors of its page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..open_loop import OpenLoopResult

INK = "#1b2027"
"""Replaced by the text color of the page in SVG; reserved for text and lines."""
BLUE, ORANGE = "#2f7fe0", "#e8833a"
_CYCLE = (BLUE, ORANGE, "#2ea061", "#a15fd0", "#d64541", "#1ea7a7", "#b8892f", "#d05f9c")
_STYLE: Any = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 100,
}


def trace_figure(result: OpenLoopResult) -> Figure:
    """Plot recorded and predicted actions of the first episode over time, one panel per dimension."""
    trace = result.trace
    names, columns = result.action_names, 2 if len(result.action_names) > 1 else 1
    rows = math.ceil(len(names) / columns)
    time = np.arange(len(trace.true)) / result.fps
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 0.75 + 1.75 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for position, axes in enumerate(panels.flat):
            if position >= len(names):
                axes.set_visible(False)
                continue
            axes.plot(
                time, trace.true[:, position], color=INK, linewidth=1.4, alpha=0.75, label="demonstration"
            )
            axes.plot(time, trace.predicted[:, position], color=BLUE, linewidth=1.3, label="policy")
            replans = np.arange(0, len(time), trace.execute)
            axes.plot(time[replans], trace.predicted[replans, position], ".", color=BLUE, markersize=3.5)
            axes.set_title(names[position], parse_math=False)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            _widen(axes, trace.true[:, position], trace.predicted[:, position])
            axes.margins(x=0.01)
            if position >= len(names) - columns:
                axes.set_xlabel("time (s)")
                axes.tick_params(labelbottom=True)
        figure.supylabel("action (robot's units)", fontsize=9.5)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def steps_figure(result: OpenLoopResult) -> Figure:
    """Plot the mean absolute error of each step of the chunk, one line per action dimension."""
    horizon = len(result.mae_by_step)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.6), layout="constrained")
        axes = figure.subplots()
        for position, name in enumerate(result.action_names):
            color = _CYCLE[position % len(_CYCLE)]
            axes.plot(
                range(1, horizon + 1),
                result.mae_by_step[:, position],
                ".-",
                color=color,
                linewidth=1.3,
                label=name,
            )
        axes.set_xlabel("step within the chunk")
        axes.set_ylabel("mean absolute error")
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(min(horizon, 12), integer=True))
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def loss_figure(curves: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> Figure:
    """Plot losses (name, steps, values) over training."""
    positive = [value for _, _, values in curves for value in values if value > 0.0]
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.8), layout="constrained")
        axes = figure.subplots()
        for position, (name, steps, values) in enumerate(curves):
            color = _CYCLE[position % len(_CYCLE)]
            axes.plot(
                steps, values, color=color, linewidth=1.5, label=name, marker="." if len(steps) < 8 else ""
            )
        if positive and max(positive) > 30.0 * min(positive):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0.0)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss")
        axes.margins(x=0.01)
        axes.legend(loc="upper right", ncols=max(1, len(curves)))
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Save a figure on a white background."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=160, facecolor="white")


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element without background; `name` makes its ids unique."""
    stream = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for identifier in set(re.findall(r'id="([^"]+)"', text)):
        text = re.sub(
            rf'(id="|href="#|url\(#){re.escape(identifier)}(?=["\)])', rf"\1{name}-{identifier}", text
        )
    return text


def _widen(axes: Axes, *values: Any) -> None:
    """Widen the limits of an almost constant dimension, so that rounding noise does not fill its panel."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if high - low < 0.02 * max(abs(low), abs(high), 1e-9):
        center, half = (low + high) / 2.0, max(0.1 * max(abs(low), abs(high)), 1e-6)
        axes.set_ylim(center - half, center + half)
