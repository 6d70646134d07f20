"""The result of an evaluation and its summary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .closed_loop import ClosedLoopResult
from .open_loop import OpenLoopResult


@dataclass(frozen=True)
class EvaluationResult:
    """All results of an evaluation, and the files that hold them."""

    checkpoint: Path
    output: Path
    command: str
    """Command line that repeats this evaluation."""
    closed_loop: ClosedLoopResult | None = None
    control: ClosedLoopResult | None = None
    open_loop: OpenLoopResult | None = None
    notes: tuple[str, ...] = ()
    embodiment: str | None = None
    """Evaluated robot, of several."""
    new_goals: bool = False
    """True if no rollout is known to start like a demonstration."""

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.output / "report.html"

    @property
    def lines(self) -> tuple[str, ...]:
        """Summary, one line for each result and file."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.embodiment is not None:
            yield f"robot          {self.embodiment}"
        if (closed := self.closed_loop) is not None:
            goals = ", goals not in the demonstrations" if self.new_goals else ""
            yield f"closed loop    {closed.env}   {_rate(closed)}{goals}, seed {closed.seed}"
        if self.control is not None:
            yield f"blind control  {_rate(self.control)}"
        if (judged := self.open_loop) is not None:
            share = judged.relative
            compared = "" if share is None else f", {100 * share:.0f} % of the error of a constant action"
            which = f"{len(judged.episodes)} of {judged.available} {judged.split} episodes"
            yield f"open loop      mean absolute error {judged.mae.mean():.3g}{compared} ({which})"
        yield from (f"note           {note}" for note in self.notes)
        yield f"report         {_shown(self.report)}"
        if (video := self.output / "rollouts.mp4").exists():
            yield f"video          {_shown(video)}"
        yield f"checkpoint     {_shown(self.checkpoint)}"


def _rate(result: ClosedLoopResult) -> str:
    low, high = (100 * end for end in result.interval)
    share = f"{result.successes}/{len(result.episodes)} = {100 * result.success_rate:.0f} %"
    return f"{share} (95 % interval {low:.0f}-{high:.0f} %)"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
