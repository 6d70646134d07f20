"""Prompt templates with the instruction and, in bins, the state of the robot."""

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
_CONSTANT = 1e-6  # spread, relative to the values, below which float32 holds little but rounding
_RARE = 1e-4  # share of the range below which the 1st and 99th percentile count as one value


def template_fields(template: str) -> set[str]:
    """Return the fields of a template, `task` and `state`; raise SpecError for any other."""
    try:
        found = [
            (name, spec, conversion)
            for _, name, spec, conversion in Formatter().parse(template)
            if name is not None
        ]
    except ValueError as error:
        raise _template_error(template, str(error)) from error
    for name, spec, conversion in found:
        if name not in ("task", "state") or spec or conversion:
            raise _template_error(template, f"`{{{name}}}` is neither `{{task}}` nor `{{state}}`")
    return {name for name, _, _ in found}


def _template_error(template: str, problem: str) -> SpecError:
    return SpecError(
        f"the prompt {template!r} cannot be filled: {problem}",
        field="prompt",
        label="cannot be filled",
        help="a prompt holds `{task}` and `{state}`; write `{{` and `}}` for braces",
    )


def clean_instruction(task: str) -> str:
    """Return the instruction in one line, with spaces for underscores, as PaliGemma's policies read it."""
    return task.strip().replace("_", " ").replace("\n", " ")


def state_bins_of_robots(bins: int, range: StateRange, statistics: Mapping[str, Any]) -> list[StateBins]:
    """Return writers of the state of each robot, in order, or a single one without several robots.

    Raises:
        SpecError: The statistics of a state are missing.
    """
    by_robot = STATE not in statistics and any(STATE in held for held in statistics.values())
    robots = [statistics[name] for name in sorted(statistics)] if by_robot else [statistics]
    return [StateBins(bins, range, held) for held in robots]


class StateBins:
    """Writer of a state (S,) as numbers of the bins of its values, such as `12 200 128`.

    Statistics of the dataset map values to [-1, 1]; bin k of K begins at -1 + 2 k / K. As in pi0.5, values
    above 1 are in the last bin, and those below -1 have the number -1. A dimension that is constant in the
    data is in the middle bin; one that varies with equal percentiles is mapped by its minimum and maximum.
    Padding of a robot's state to the width of another's is omitted.
    """

    def __init__(self, bins: int, range: StateRange, statistics: Mapping[str, Any]) -> None:
        """Prepare the bins; raise SpecError if statistics of the state are missing."""
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
        self._center, self._scale = (low + high) / 2.0, (high - low) / 2.0
        self._varies = self._scale > np.maximum(_CONSTANT * np.abs(self._center), 1e-30)
        self._edges = np.linspace(-1.0, 1.0, bins + 1)[:-1]

    def __call__(self, state: npt.NDArray[Any]) -> str:
        own, scale = state[: self.width].astype(np.float64), np.where(self._varies, self._scale, 1.0)
        normal = np.where(self._varies, (own - self._center) / scale, 0.0)
        return " ".join(str(number) for number in np.digitize(normal, self._edges) - 1)
