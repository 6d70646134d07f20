"""What an evaluation found, and the lines that tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .closed_loop import ClosedLoopResult
from .open_loop import OpenLoopResult


@dataclass(frozen=True)
class EvaluationResult:
    """All results, the files that hold them, and the lines that tell them."""

    checkpoint: Path
    output: Path
    command: str
    """The command line that repeats this evaluation."""
    closed_loop: ClosedLoopResult | None = None
    control: ClosedLoopResult | None = None
    open_loop: OpenLoopResult | None = None
    notes: tuple[str, ...] = ()
    embodiment: str | None = None
    """Which of several robots was judged."""
    lines: tuple[str, ...] = field(default=(), repr=False)

    @property
    def report(self) -> Path:
        return self.output / "report.html"


def summary_lines(result: EvaluationResult, *, new_goals: bool) -> list[str]:
    """One line a result; `new_goals` says that no rollout begins like a demonstration."""
    lines = [] if result.embodiment is None else [f"robot          {result.embodiment}"]
    if (closed := result.closed_loop) is not None:
        low, high = closed.interval
        goals = ", goals not in the demonstrations" if new_goals else ""
        lines.append(
            f"closed loop    {closed.env}   {_rate(closed)} (95 % interval {100 * low:.0f}-{100 * high:.0f} %)"
            f"{goals}, seed {closed.seed}"
        )
    if (control := result.control) is not None:
        low, high = control.interval
        lines.append(f"blind control  {_rate(control)} (95 % interval {100 * low:.0f}-{100 * high:.0f} %)")
    if (judged := result.open_loop) is not None:
        share = (
            ""
            if judged.relative is None
            else f", {100 * judged.relative:.0f} % of the error of a constant action"
        )
        which = f"{len(judged.episodes)} of {judged.available} {judged.split} episodes"
        lines.append(f"open loop      mean absolute error {judged.mae.mean():.3g}{share} ({which})")
    lines += [f"note           {note}" for note in result.notes]
    lines.append(f"report         {_shown(result.report)}")
    if (video := result.output / "rollouts.mp4").exists():
        lines.append(f"video          {_shown(video)}")
    lines.append(f"checkpoint     {_shown(result.checkpoint)}")
    return lines


def _rate(result: ClosedLoopResult) -> str:
    return f"{result.successes}/{len(result.episodes)} = {100 * result.success_rate:.0f} %"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
