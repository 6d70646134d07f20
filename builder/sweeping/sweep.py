"""A sweep: trials of a recipe, each a `policysmith train` in a process of its own.

    sweep("recipes/act.yaml", ["training.optimizer.lr=log(1e-4,1e-2)"], Path("sweeps/act"), trials=20)

The directory holds `sweep.json`, `recipe.yaml`, `trials/0000/` and so on, `table.csv` and `report.html`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from ...schemas.diagnostics import Diagnostic, in_order
from ...schemas.errors import CheckpointError, PolicysmithError, RecipeError
from ...schemas.yaml.document import Document
from .. import runs
from ..builder import Builder
from ..recipe.standalone import standalone
from ..training.record import LOWER_IS_BETTER
from .methods import Method, Work, method
from .report import write_report
from .space import Range, overrides, parse_range
from .trials import Trial, directory, load, measured, save

PAUSE = 0.05
"""Seconds between looks at the trials that run."""
Tell = Callable[[str], None]
_TRAIN = "import sys; from policysmith.schemas.console import policysmith; sys.exit(policysmith())"


@dataclass(frozen=True)
class Plan:
    """A checked sweep."""

    ranges: tuple[Range, ...]
    method: Method
    metric: str
    maximize: bool
    settings: dict[str, Any]
    """Options that a resumed sweep must share with the earlier one."""
    recipe_text: str
    allow_imports: bool = False
    device: str | None = None
    gpus: tuple[str, ...] = ()
    jobs: int = 1


def plan(
    document: Document,
    searched: Sequence[str],
    *,
    name: str,
    trials: int,
    metric: str | None = None,
    seed: int = 0,
    jobs: int | None = None,
    device: str | None = None,
    allow_imports: bool = False,
) -> Plan:
    """Check a recipe with its ranges, and plan a sweep by a method.

    Raises:
        RecipeError: The recipe is wrong, or a path or value of a range does not fit it.
        PolicysmithError: A range has another form, or the metric is never measured.
    """
    ranges = tuple(parse_range(text) for text in searched)
    if not ranges:
        raise PolicysmithError("a sweep needs a range: `-s 'training.optimizer.lr=log(1e-4,1e-2)'`")
    if len({one.path for one in ranges}) < len(ranges):
        raise PolicysmithError("`-s` names a path twice; write all its values in one range")
    builder = Builder.from_recipe(document, allow_imports=allow_imports)
    _check_ranges(builder, ranges)
    sections = builder.check().recipe.sections
    evaluated = sections.evaluation is not None and sections.evaluation.every is not None
    known = [*(["validation/loss"] if sections.data.validation else []), "loss"]
    known += ["evaluation/success"] if evaluated else []
    metric = metric or known[0]
    if metric not in known:
        raise PolicysmithError(
            f"runs of this recipe do not measure `{metric}`; `--metric` can be {', '.join(known)}, and `data.validation` "
            "or `evaluation.every` add another"
        )
    maximize = not LOWER_IS_BETTER.get(metric, True)  # type: ignore[call-overload]
    steps = sections.training.steps
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = tuple(visible.split(",")) if torch.cuda.is_available() and device != "cpu" else ()
    return Plan(
        ranges,
        method(name, ranges, trials=trials, steps=steps, seed=seed, maximize=maximize),
        metric,
        maximize,
        {
            "recipe": builder.recipe.sha256,
            "search": list(searched),
            "method": name,
            "metric": metric,
            "seed": seed,
        }
        | ({"trials": trials} if name == "halving" else {}),
        standalone(builder.recipe.document, located=True),
        allow_imports,
        device,
        gpus,
        jobs or max(1, len(gpus)),
    )


def _check_ranges(builder: Builder, ranges: Sequence[Range]) -> None:
    """Raise RecipeError with what is wrong about a path, or about the values of a range."""
    found = list[Diagnostic]()
    for one in ranges:
        for value in one.samples:
            (change,) = overrides({one.path: value})
            try:
                _ = builder.override(change).recipe
            except RecipeError as error:
                found += error.diagnostics
                break  # the other values would say the same of a path
    if found:
        raise RecipeError(in_order(found))


def run(sweep: Plan, output: Path, tell: Tell) -> list[Trial]:
    """Run the trials that are left, and return all of them.

    Raises:
        CheckpointError: The directory holds another sweep, or another process works there.
        Interrupted: A signal arrived; trials save, and the same command goes on.
    """
    with runs.held(output):
        _claim(sweep, output)
        trials = {trial.number: trial for trial in load(output)}
        with _Workers(sweep, output, tell, trials) as workers:
            while workers.busy or not workers.exhausted:
                workers.start_more()
                workers.take_finished()
                time.sleep(PAUSE)
        _write(sweep, output, list(trials.values()), over=True)
    return [trials[number] for number in sorted(trials)]


def best(trials: Sequence[Trial], *, maximize: bool) -> Trial | None:
    """Return the finished trial with the best value, among those with the most steps; None without any."""
    most = max((trial.steps for trial in trials), default=0)
    scored = [(trial.value, trial) for trial in trials if trial.value is not None and trial.steps == most]
    sign = -1.0 if maximize else 1.0
    return min(scored, key=lambda pair: (sign * pair[0], pair[1].number))[1] if scored else None


def _claim(sweep: Plan, output: Path) -> None:
    path = output / "sweep.json"
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); choose another `--output`") from error
        changed = [key for key, value in sweep.settings.items() if before.get(key) != value]
        if changed:
            raise CheckpointError(
                f"{output} holds another sweep ({', '.join(changed)} differ); choose another `--output`, or go on with the "
                "same recipe and flags"
            )
        return
    if (output / "trials").exists():
        raise CheckpointError(f"{output} holds trials without their `sweep.json`; choose another `--output`")
    (output / "recipe.yaml").write_text(sweep.recipe_text)
    runs.write_whole(path, json.dumps(sweep.settings, indent=2) + "\n")


def _write(sweep: Plan, output: Path, trials: Sequence[Trial], *, over: bool) -> None:
    write_report(
        output,
        sorted(trials, key=lambda trial: trial.number),
        sweep.ranges,
        sweep.metric,
        best(trials, maximize=sweep.maximize),
        maximize=sweep.maximize,
        over=over,
    )


@dataclass
class _Running:
    work: Work
    process: subprocess.Popen[bytes]
    slot: int
    began: float = field(default_factory=time.monotonic)


class _Workers:
    """Processes that train trials, one a slot. An error or a signal ends them; they save before they go."""

    def __init__(self, sweep: Plan, output: Path, tell: Tell, trials: dict[int, Trial]) -> None:
        self._sweep, self._output, self._tell, self._trials = sweep, output, tell, trials
        self._running: dict[int, _Running] = {}
        self._broken = [trial for trial in trials.values() if trial.status == "running"]
        """Trials that a killed sweep left; unknown to the method until they have ended."""
        self.exhausted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGTERM)
        for one in self._running.values():
            one.process.wait()

    @property
    def busy(self) -> bool:
        """True while a trial runs."""
        return bool(self._running)

    def start_more(self) -> None:
        """Fill free slots."""
        free = sorted(set(range(self._sweep.jobs)) - {one.slot for one in self._running.values()})
        for slot in free:
            work = self._next()
            if work is None:
                self.exhausted = not self._running
                return
            self._start(work, slot)

    def take_finished(self) -> None:
        """Read the results of the trials that have ended."""
        for number, one in list(self._running.items()):
            if (code := one.process.poll()) is not None:
                del self._running[number]
                self._finish(one, code)

    def _next(self) -> Work | None:
        if self._broken:
            trial = self._broken.pop(0)
            return Work(trial.number, trial.values, trial.asked)
        return self._sweep.method.next(self._trials, self._running.keys())

    def _start(self, work: Work, slot: int) -> None:
        trial = self._trials.setdefault(work.number, Trial(work.number, work.values))
        trial.status, trial.asked = "running", work.steps
        home = directory(self._output, work.number)
        save(self._output, trial)
        words = [
            sys.executable,
            "-c",
            _TRAIN,
            "train",
            str(self._output / "recipe.yaml"),
            "--output",
            str(home),
        ]
        words += ["--resume"]
        for change in (*overrides(work.values), f"training.steps={work.steps}"):
            words += ["-o", change]
        words += ["--allow-imports"] if self._sweep.allow_imports else []
        words += ["--device", self._sweep.device] if self._sweep.device else []
        environment = dict(os.environ)
        if self._sweep.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._sweep.gpus[slot % len(self._sweep.gpus)]
        with (home / "output.log").open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self._running[work.number] = _Running(work, process, slot)

    def _finish(self, one: _Running, code: int) -> None:
        trial, home = self._trials[one.work.number], directory(self._output, one.work.number)
        trial.seconds += time.monotonic() - one.began
        value = measured(home, self._sweep.metric) if code == 0 else None
        if value is None:
            trial.status, trial.error = (
                "failed",
                _last_words(home) if code else f"no finite {self._sweep.metric}",
            )
        else:
            trial.status, trial.results[str(one.work.steps)] = "finished", value
        save(self._output, trial)
        changes = " ".join(overrides(trial.values))
        outcome = f"{self._sweep.metric} {value:.4g}" if value is not None else f"failed: {trial.error}"
        self._tell(f"trial {trial.number}  {changes}  {one.work.steps} steps  {outcome}")
        _write(self._sweep, self._output, list(self._trials.values()), over=False)


def _last_words(home: Path) -> str:
    def lines() -> Iterator[str]:
        with contextlib.suppress(OSError):
            yield from (home / "output.log").read_text(errors="replace").splitlines()

    said = [line.strip() for line in lines() if line.strip()]
    errors = [line for line in said if line.startswith("error")]
    return (errors or said or ["no output"])[-1 if not errors else 0]
