"""Methods of a sweep: what to run next, from the trials so far. So a sweep goes on after a kill."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...schemas.errors import PolicysmithError
from .space import Range, Values, drawn, grid
from .trials import Trial


@dataclass(frozen=True)
class Work:
    """A trial to train up to a number of steps."""

    number: int
    values: Values
    steps: int


class Method(Protocol):
    """A source of work. `trials` are all begun ones by number; None means nothing to do before another ends."""

    def next(self, trials: Mapping[int, Trial], running: Collection[int]) -> Work | None: ...


class Listed:
    """Trials known from the start, of a grid or drawn at random."""

    def __init__(self, values: Sequence[Values], steps: int) -> None:
        self._values, self._steps = values, steps

    def next(self, trials: Mapping[int, Trial], running: Collection[int]) -> Work | None:
        """Return the first trial that has not begun."""
        for number, values in enumerate(self._values):
            if number not in trials:
                return Work(number, values, self._steps)
        return None


class Halving:
    """Successive halving (Jamieson and Talwalkar, 2016): a third of the trials goes on with three times the steps.

    Trials that tie for the last place go on in the order of their numbers.
    """

    FACTOR = 3

    def __init__(self, values: Sequence[Values], steps: int, *, maximize: bool) -> None:
        """Give the last trials all steps, and all trials as few as the number of rounds allows."""
        self._values, self._sign = values, -1.0 if maximize else 1.0
        rounds = 1
        while self.FACTOR**rounds <= len(values) and steps // self.FACTOR**rounds >= 1:
            rounds += 1
        self.steps = [steps // self.FACTOR ** (rounds - 1 - each) for each in range(rounds)]

    def next(self, trials: Mapping[int, Trial], running: Collection[int]) -> Work | None:
        """Return a trial of the first round that is not over."""
        members = list(range(len(self._values)))
        for place, steps in enumerate(self.steps):
            key, waits = str(steps), False
            for number in members:
                known = trials.get(number)
                over = known is not None and (known.status == "failed" or key in known.results)
                if not over and number not in running:
                    return Work(number, self._values[number], steps)
                waits |= not over
            if waits:
                return None
            good = [number for number in members if key in trials[number].results]
            good.sort(key=lambda number: (self._sign * trials[number].results[key], number))
            members = good[: max(1, len(self._values) // self.FACTOR ** (place + 1))]
        return None


class TreeParzen:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), told of all trials so far."""

    def __init__(self, ranges: Sequence[Range], count: int, steps: int, seed: int, *, maximize: bool) -> None:
        """Raise PolicysmithError without Optuna."""
        if importlib.util.find_spec("optuna") is None:
            raise PolicysmithError(
                "`--method tpe` needs Optuna: `pip install 'policysmith[sweep]'`, or choose `--method random`"
            )
        self._ranges, self._count, self._steps, self._seed = ranges, count, steps, seed
        self._maximize = maximize

    def next(self, trials: Mapping[int, Trial], running: Collection[int]) -> Work | None:
        """Return a new trial with the values that promise most."""
        import optuna

        number = max(trials, default=-1) + 1
        if number >= self._count:
            return None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=self._seed + number, n_startup_trials=min(10, self._count // 3)
        )
        study = optuna.create_study(sampler=sampler, direction="maximize" if self._maximize else "minimize")
        shapes = {one.path: _distribution(one) for one in self._ranges}
        for trial in trials.values():
            if trial.value is not None:
                params = {one.path: _inner(one, trial.values[one.path]) for one in self._ranges}
                study.add_trial(
                    optuna.trial.create_trial(params=params, distributions=shapes, value=trial.value)
                )
        params = study.ask(shapes).params
        return Work(number, {one.path: _outer(one, params[one.path]) for one in self._ranges}, self._steps)


def _distribution(one: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices:
        return CategoricalDistribution(range(len(one.choices)))  # it knows no lists
    if one.is_whole:
        return IntDistribution(round(one.low), round(one.high), log=one.is_log)
    return FloatDistribution(one.low, one.high, log=one.is_log)


def _inner(one: Range, value: Any) -> Any:
    return one.choices.index(value) if one.choices else value


def _outer(one: Range, value: Any) -> Any:
    if one.choices:
        return one.choices[value]
    return value if one.is_whole else min(max(float(f"{value:.6g}"), one.low), one.high)


METHODS = ("grid", "random", "halving", "tpe")


def method(
    name: str, ranges: Sequence[Range], *, trials: int, steps: int, seed: int, maximize: bool
) -> Method:
    """Return a method by name. Raise PolicysmithError if it does not suit the ranges or lacks its package."""
    if name == "grid":
        return Listed(grid(ranges), steps)
    if name == "tpe":
        return TreeParzen(ranges, trials, steps, seed, maximize=maximize)
    values = [drawn(ranges, seed, number) for number in range(trials)]
    return Halving(values, steps, maximize=maximize) if name == "halving" else Listed(values, steps)
