"""Plot of the speed of each trainer beside transformers.Trainer, from the results of `train_step.py`.

python benchmarks/plots.py benchmarks/results/2026-11-h100/train_step_*.json --output docs/images/train_step.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from step.results import OURS, REFERENCE

COLOURS = {
    "trainer_compile": ("#9ab8dc", "transformers.Trainer, torch_compile"),
    "trainer_liger": ("#b9a5d3", "transformers.Trainer, use_liger_kernel"),
    "lerobot_like": ("#b4bcc6", "a loop like LeRobot's"),
    "ours": ("#e8833a", "policysmith"),
}
INK = "#1b2027"
BAR, GAP = 0.26, 0.42
"""Heights of a bar and of the space between works, in inches."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        help="of one kind of device; where several have a work, the last counts",
    )
    parser.add_argument("--output", type=Path, required=True, help="PNG or SVG")
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in arguments.results]
    works = {work["name"]: work for run in runs for work in run["works"] if work["variants"]}
    order = sorted(works.values(), key=lambda work: (work["title"], work["batch"]))
    figure = ratios({**runs[0], "works": order})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=150)


def ratios(results: Mapping[str, Any]) -> Figure:
    """Draw a bar for each trainer of each work: its steps per second over those of `trainer`, which are the line at 1.

    Whiskers span the blocks: the slowest over the reference's fastest, to the fastest over its slowest. A black mark is
    the goal.
    """
    works = [work for work in results["works"] if "speedup" in work["variants"].get(REFERENCE, {})]
    bars = [[name for name in COLOURS if "speedup" in work["variants"].get(name, {})] for work in works]
    height = sum(len(names) * BAR + GAP for names in bars) + 1.5
    figure = Figure(figsize=(8.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    top, ticks, labels = 0.0, [], []
    for work, names in zip(works, bars, strict=True):
        for index, name in enumerate(names):
            goal = work["goals"].get("speedup") if name == OURS else None
            _bar(axes, top + (index + 0.5) * BAR, work["variants"], name, goal)
        ticks.append(top + len(names) * BAR / 2)
        labels.append(f"{work['title']}\nbatch {work['batch']}")
        top += len(names) * BAR + GAP
    axes.axvline(1.0, color=INK, lw=0.9, ls=(0, (4, 3)), label="transformers.Trainer")
    axes.set_yticks(ticks, labels, fontsize=8.5)
    axes.set_ylim(top - GAP / 2, -GAP / 2)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.75), max(high * 1.25, 2.0))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("steps per second, relative to transformers.Trainer (eager)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(_setting(results), x=0.02, ha="left", fontsize=9, color=INK)
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(
        once.values(), once.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8.5
    )
    return figure


def _bar(axes: Any, y: float, variants: Mapping[str, Any], name: str, goal: float | None) -> None:
    colour, label = COLOURS[name]
    own, reference = variants[name]["ms_per_step"], variants[REFERENCE]["ms_per_step"]
    speedup = variants[name]["speedup"]
    low, high = reference["min"] / own["max"], reference["max"] / own["min"]
    axes.barh(y, speedup - 1.0, BAR * 0.86, left=1.0, color=colour, label=label)
    axes.errorbar(
        speedup, y, xerr=[[max(speedup - low, 0)], [max(high - speedup, 0)]], color=INK, lw=0.8, capsize=2
    )
    end = max(high, speedup, 1.0)
    if goal is not None:
        axes.plot([goal, goal], [y - BAR / 2, y + BAR / 2], color="black", lw=2.2, label="goal")
        end = goal if end < goal < 1.4 * end else end
    axes.annotate(f"{speedup:.2f}", (end, y), (5, 0), textcoords="offset points", va="center", fontsize=8)


def _setting(results: Mapping[str, Any]) -> str:
    hardware, versions = results.get("hardware", {}), results.get("versions", {})
    device = hardware.get("gpu") or hardware.get("cpu", "")
    told = [
        f"{name} {versions[name]}" for name in ("torch", "transformers", "accelerate") if name in versions
    ]
    return f"{device}; {', '.join(told)}" + ("; a trial, no measurement" if results.get("tiny") else "")


if __name__ == "__main__":
    main()
