"""Prompts: a template filled with the instruction and, in bins, with the state of the robot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import Formatter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...schemas.errors import DatasetError, SpecError

StateRange = Literal["q99", "min_max"]
STATE = "observation.state"

_ENDS: dict[str, tuple[str, str]] = {"q99": ("q01", "q99"), "min_max": ("min", "max")}
_CONSTANT = 1e-6  # spread, relative to the values, under which float32 holds hardly more than rounding
_RARE = 1e-4  # share of the range under which the 1st and 99th percentile count as one value


def fields(template: str) -> set[str]:
    """What a template asks for, `task` and `state`; raises SpecError for anything else."""
    try:
        found = [
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(template)
            if name is not None
        ]
    except ValueError as error:
        raise _unknown(template, str(error)) from error
    for name, spec, conversion in found:
        if name not in ("task", "state") or spec or conversion:
            raise _unknown(template, f"`{{{name}}}` is neither `{{task}}` nor `{{state}}`")
    return {name for name, _, _ in found}


def _unknown(template: str, problem: str) -> SpecError:
    return SpecError(
        f"the prompt {template!r} cannot be filled: {problem}",
        field="prompt",
        label="cannot be filled",
        help="a prompt holds `{task}` and `{state}`; write `{{` and `}}` for braces",
    )


def cleaned(task: str) -> str:
    """The instruction in one line, with spaces for underscores, as PaliGemma's policies read it."""
    return task.strip().replace("_", " ").replace("\n", " ")


def bins_of_robots(bins: int, range: StateRange, statistics: Mapping[str, Any]) -> list[StateBins]:
    """What writes the state of each robot, in the order of their numbers; of one, where the data tells none apart.

    Raises SpecError where the statistics of a state are missing.
    """
    by_robot = STATE not in statistics and any(STATE in held for held in statistics.values())
    robots = [statistics[name] for name in sorted(statistics)] if by_robot else [statistics]
    return [StateBins(bins, range, held) for held in robots]


class StateBins:
    """Writes a state (S,) as the numbers of the bins its values lie in, such as `12 200 128`.

    Values are mapped to [-1, 1] by statistics of the dataset; bin k of K holds those from -1 + 2 k / K on. As in pi0.5,
    values above 1 are in the last bin, and those below -1 are numbered -1. A dimension that is constant in the data is
    in the middle bin; one whose percentiles coincide though it varies is mapped by its minimum and maximum. What pads the
    state of a robot to the width of another's is left out.
    """

    def __init__(self, bins: int, range: StateRange, statistics: Mapping[str, Any]) -> None:
        """Raises SpecError where the statistics of the state are missing."""
        held = statistics.get(STATE, {})
        for name in _ENDS[range]:
            if name not in held:
                raise SpecError(
                    f"the prompt writes `{STATE}` in bins between its `{_ENDS[range][0]}` and `{_ENDS[range][1]}`, and "
                    f"the statistics of the dataset hold no `{name}` of it",
                    field="state_range",
                    source=STATE,
                    label=f"no `{name}` of `{STATE}`",
                    help=f"add statistics of `{STATE}` to the dataset, or leave `{{state}}` out of the prompt",
                )
            if not all(math.isfinite(value) for value in held[name]):
                raise DatasetError(f"`{name}` of `{STATE}` in the statistics of the dataset is not finite")
        low, high = (np.asarray(held[name], dtype=np.float64) for name in _ENDS[range])
        if range == "q99" and "min" in held and "max" in held:
            least, most = (np.asarray(held[name], dtype=np.float64) for name in ("min", "max"))
            rare = high - low < _RARE * (most - least)
            low, high = np.where(rare, least, low), np.where(rare, most, high)
        self.width = len(low)
        self._centre, self._scale = (low + high) / 2.0, (high - low) / 2.0
        self._varies = self._scale > np.maximum(_CONSTANT * np.abs(self._centre), 1e-30)
        self._edges = np.linspace(-1.0, 1.0, bins + 1)[:-1]

    def __call__(self, state: npt.NDArray[Any]) -> str:
        own, scale = state[: self.width].astype(np.float64), np.where(self._varies, self._scale, 1.0)
        normal = np.where(self._varies, (own - self._centre) / scale, 0.0)
        return " ".join(str(number) for number in np.digitize(normal, self._edges) - 1)
