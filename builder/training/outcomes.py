"""Outcomes of the validation and evaluation of a run: the best checkpoint, and an early stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ...schemas.interrupts import Signals
from .. import runs
from .evaluations import Evaluations
from .job import Job
from .monitoring.logs import Reporters
from .record import Record


class Outcomes:
    """The record of a run and the evaluations beside it. All processes have one; only the main one evaluates."""

    def __init__(self, job: Job, accelerator: Accelerator, reporter: Reporters, step: int) -> None:
        """Begin at a step, with what the log has up to there."""
        self._run, self._section = job.directory, job.section
        self._accelerator, self._reporter = accelerator, reporter
        self._record = Record(job.directory / runs.LOG, step)
        rollouts: dict[str, Any] = job.recipe.get("evaluation") or {}
        self._every: int | None = rollouts.get("every")
        self._evaluations = Evaluations(
            job.directory,
            accelerator.device.type,
            reporter.note,
            allow_imports=bool(job.recipe.get("imports")),
        )
        self.stopped_early = False

    def is_planned(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` updates, by number."""
        periods = (self._section.save_every, self._every)
        return step == self._section.steps or any(each is not None and step % each == 0 for each in periods)

    def catch_up(self, step: int, validated: Callable[[], dict[str, float]] | None) -> None:
        """Validate and evaluate what a run missed that was killed at a step, and stop if it was over."""
        if step == 0:
            return
        if validated is not None and self.is_planned(step) and not self._record.has("validation/loss", step):
            self.report(step, validated())
        for each in map(runs.step_of, runs.checkpoints(self._run)):
            if each and not self._record.has("evaluation/success", each):
                self._evaluate(each)
        self._stop_if_due(step)

    def report(self, step: int, values: dict[str, float]) -> None:
        """Log values, and point at the best checkpoint."""
        self._reporter.log(step, values)
        self._record.add(step, values)
        metric = self._section.keep_best
        if metric in values and self._accelerator.is_main_process and self._record.best(metric) == step:
            runs.point_best(self._run, step)
            runs.prune(self._run, self._section.keep)  # the former best

    def take_results(self) -> None:
        """Report the evaluation that has ended, if any."""
        if (result := self._evaluations.finished()) is not None:
            self._reporter.note(f"evaluation after {result.text}")
            self.report(result.step, {"evaluation/success": result.rate})

    def after_planned_save(self, step: int) -> None:
        """Evaluate the checkpoint if that is due, and see whether the run is over."""
        self._evaluate(step)
        if step < self._section.steps:
            self._stop_if_due(step)

    def await_results(self, signals: Signals) -> None:
        """Wait for the evaluations that are due, unless a signal arrives."""
        if self._evaluations.busy:
            self._reporter.note("waiting for the evaluation of the last checkpoints")
        while self._evaluations.busy and not signals.received:
            self.take_results()
            time.sleep(0.05)
        self._evaluations.end()
        if self._every is not None and self._accelerator.is_main_process:
            runs.prune(self._run, self._section.keep)  # evaluations held some

    def end(self) -> None:
        """End the evaluations."""
        self._evaluations.end()

    def _evaluate(self, step: int) -> None:
        if self._every is not None and step % self._every == 0 and self._accelerator.is_main_process:
            self._evaluations.request(step)

    def _stop_if_due(self, step: int) -> None:
        """Decide in the main process, for all."""
        if self._section.early_stop is None:
            return
        reason = [self._record.reason_to_stop(self._section.early_stop)]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(reason)
        if reason[0]:
            self.stopped_early = True
            self._reporter.note(f"{reason[0]}; the run ends at step {step}")
