from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import DatasetError, SpecError
from ...schemas.part import PartConfig, Section
from ...schemas.specs import Range, Spec, Specs
from ..base import Batch, Facts, Transform
from ..embodiments import embodiments, facts_by_robot, ids_of, rows_by_robot
from ..vectors.specs import Constants, resolve_dims, statistics_of, vectors

Mode = Literal["mean_std", "min_max", "quantiles", "q99", "scale", "binary", "identity"]

_NEEDS: dict[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantiles": ("q01", "q99"),
    "q99": ("q01", "q99"),
    "scale": ("min", "max"),
    "binary": ("min", "max"),
}
_CONSTANT = 1e-6  # spread, relative to the values, below which float32 holds little but rounding
_RARE = 1e-4  # share of the range below which the 1st and 99th percentile count as one value


class DimMode(Section):
    """Mode of some dimensions of one key."""

    key: str
    """State, or `action`."""
    dims: list[int] = Field(min_length=1)
    """Dimensions; -1 is the last."""
    mode: Mode
    """Mode of these dimensions."""


class Normalize(Transform):
    """Normalization of states and actions by dataset statistics; undone for predicted actions.

    | mode | maps | to |
    |---|---|---|
    | `mean_std` | mean, mean + std | 0, 1 |
    | `min_max` | min, max | -1, 1 |
    | `quantiles` | 1st and 99th percentile | -1, 1; values beyond exceed this range and are restored (LeRobot, openpi) |
    | `q99` | 1st and 99th percentile | -1, 1; values beyond are clipped and restored as the percentile (GR00T) |
    | `scale` | 0, the largest absolute value | 0, 1; signs and zero stay |
    | `binary` | below and above the middle of min and max | -1, 1; restored as min and max |
    | `identity` | nothing is changed | |

    Computes in float32, independent of the model's dtype. A dimension that is constant in the data maps to 0
    and back to its constant; with `scale` only if it is zero. If a dimension departs from one value so rarely
    that its percentiles coincide (a click, a gripper), `quantiles` and `q99` use its minimum and maximum
    instead, so that the rare values are restored; `remarks` names it. Statistics describe the values that
    reach this transform, after all earlier transforms. With several robots, each sample uses the statistics
    of its own robot; dimensions that a robot lacks are 0.
    """

    class Config(PartConfig):
        type: Literal["normalize"]
        keys: list[str] | None = Field(default=None, min_length=1)
        """Keys to normalize; by default every state and the action."""
        mode: Mode = "mean_std"
        """Range that values are brought to: `mean_std`, or -1 to 1 by `min_max`, `quantiles`, `q99`, `scale`, `binary`."""
        modes: dict[str, Mode] = Field(default_factory=dict)
        """Modes of single keys that differ from `mode`, such as `{action: min_max}`."""
        dims: list[DimMode] = Field(default_factory=list)
        """Modes of single dimensions, such as `[{key: action, dims: [-1], mode: binary}]` for a gripper."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._maps = {key: _KeyMap(robots) for key, robots in _scalings(config, inputs, facts).items()}
        self._many = embodiments(inputs) is not None

    @classmethod
    def measures(cls, config: Config, inputs: Specs) -> Collection[str]:
        return [
            key for key, modes in _modes(config, inputs).items() if {mode for mode, _ in modes} & {*_NEEDS}
        ]

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs, marked as normalized.

        Raises:
            SpecError: Statistics are missing or do not fit a mode, or values are already normalized.
        """
        for key in (normalized := _modes(config, inputs)):
            if inputs[key].range is Range.NORMALIZED:
                raise SpecError(
                    f"`{key}` is already normalized",
                    field=None if config.keys is None else f"keys.{config.keys.index(key)}",
                    source=key,
                    trait="range",
                    label="normalized twice",
                    help="remove one of the two, or assign each separate values under `keys`",
                )
        bounds = {key: _bounds(robots) for key, robots in _scalings(config, inputs, facts).items()}
        return {
            **inputs,
            **{key: replace(inputs[key], range=Range.NORMALIZED, bounds=bounds[key]) for key in normalized},
        }

    @classmethod
    def remarks(cls, config: Config, inputs: Specs, facts: Facts) -> list[str]:
        """Return notes on dimensions that deviate from `mode` or lose much of their range to clipping."""
        found = []
        for key, robots in _scalings(config, inputs, facts).items():
            dims = range(len(robots[0]))
            rare = [dim for dim in dims if any(own[dim].mode != own[dim].configured for own in robots)]
            if rare:
                found.append(
                    f"`{key}` departs from one value too rarely for percentiles in {_places(rare)}, which "
                    "use `min_max` instead"
                )
            clipped = [dim for dim in dims if any(own[dim].lost > 10.0 for own in robots)]
            if clipped:
                found.append(
                    f"`q99` clips `{key}` to less than a tenth of its range in {_places(clipped)}; "
                    "`quantiles` or `min_max` keeps the rest"
                )
        return found

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="normalize", modes={"action": "min_max"})

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with normalized values (float32)."""
        return self._map(batch, _KeyMap.forward)

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with values in the units of the dataset (float32)."""
        return self._map(batch, _KeyMap.inverse)

    def _map(self, batch: Batch, step: Callable[[_KeyMap, Tensor, Tensor | None], Tensor]) -> dict[str, Any]:
        present = [key for key in self._maps if key in batch]
        ids = ids_of(batch) if self._many and present else None
        return {**batch, **{key: step(self._maps[key], batch[key], ids) for key in present}}


@dataclass(frozen=True)
class _Scaling:
    """Mapping of one dimension: its mode, and the values that map to 0 and to 1.

    A `scale` of 0 marks a constant, or a dimension a robot lacks. `configured` is the mode in the recipe;
    `ends` are the smallest and the largest value of the data, in units of the dataset.
    """

    mode: str
    center: float = 0.0
    scale: float = 1.0
    configured: str = ""
    ends: tuple[float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest normalized value of the data; None if its ends are unknown."""
        if self.scale == 0.0:
            return 0.0, 0.0
        if self.mode in ("binary", "q99"):
            return -1.0, 1.0
        if self.ends is None:
            return None
        low, high = ((end - self.center) / self.scale for end in self.ends)
        return low, high

    @property
    def lost(self) -> float:
        """Size of the data's range beyond the clipping bounds, relative to the range within."""
        if self.mode != "q99" or self.ends is None or self.scale == 0.0:
            return 0.0
        return (self.ends[1] - self.ends[0]) / (2.0 * self.scale)


class _KeyMap:
    """Mapping of all dimensions of one key, for each robot."""

    def __init__(self, robots: Sequence[Sequence[_Scaling]]) -> None:
        modes = {scaling.mode for own in robots for scaling in own}
        self._binary, self._clips = "binary" in modes, "q99" in modes
        self._constants = Constants(
            center=[[scaling.center for scaling in own] for own in robots],
            scale=[[scaling.scale or 1.0 for scaling in own] for own in robots],
            varies=[[scaling.scale > 0.0 for scaling in own] for own in robots],
            binary=[[scaling.mode == "binary" for scaling in own] for own in robots],
            clips=[[scaling.mode == "q99" for scaling in own] for own in robots],
        )

    def _of(self, ids: Tensor | None, values: Tensor) -> dict[str, Tensor]:
        """Return the constants for samples of robots `ids` (B,), or of the only robot."""
        held = self._constants.on(values.device)
        if ids is None:
            return {name: table[0] for name, table in held.items()}
        return {name: rows_by_robot(table, ids, values) for name, table in held.items()}

    def forward(self, values: Tensor, ids: Tensor | None) -> Tensor:
        held = self._of(ids, values)
        values = values.float()
        normal = (values - held["center"]) / held["scale"]
        if self._clips:
            normal = torch.where(held["clips"], normal.clamp(-1.0, 1.0), normal)
        if self._binary:
            normal = torch.where(held["binary"], torch.where(values > held["center"], 1.0, -1.0), normal)
        return torch.where(held["varies"], normal, 0.0)

    def inverse(self, normal: Tensor, ids: Tensor | None) -> Tensor:
        held = self._of(ids, normal)
        normal = normal.float()
        if self._binary:
            normal = torch.where(held["binary"], torch.where(normal > 0.0, 1.0, -1.0), normal)
        return torch.where(held["varies"], normal * held["scale"] + held["center"], held["center"])


def _modes(config: Normalize.Config, inputs: Specs) -> dict[str, list[tuple[str, str]]]:
    """Return the mode of each dimension of each normalized key, and the option that sets it."""
    known = vectors(inputs)
    wanted = list(known) if config.keys is None else config.keys
    places: dict[str, tuple[str, Collection[str]]] = {
        f"keys.{position}": (key, known) for position, key in enumerate(wanted)
    }
    places |= {f"modes.{key}": (key, wanted) for key in config.modes}
    places |= {f"dims.{position}.key": (entry.key, wanted) for position, entry in enumerate(config.dims)}
    for option, (key, choice) in places.items():
        if key not in choice:
            raise SpecError(
                f"`{key}` is not among the values to normalize",
                field=option,
                label="not normalized",
                help=f"values are: {', '.join(choice) or 'none'}",
            )
    modes: dict[str, list[tuple[str, str]]] = {}
    for key in wanted:
        option = f"modes.{key}" if key in config.modes else "mode"
        modes[key] = [(config.modes.get(key, config.mode), option)] * known[key].width
    for position, entry in enumerate(config.dims):
        for dim in resolve_dims(entry.dims, known[entry.key].width, entry.key, f"dims.{position}.dims"):
            if modes[entry.key][dim][1].startswith("dims."):
                raise SpecError(
                    f"dimension {dim} of `{entry.key}` has two modes under `dims`",
                    field=f"dims.{position}.dims",
                    label="named before",
                    help="name each dimension once",
                )
            modes[entry.key][dim] = (entry.mode, f"dims.{position}.mode")
    return {key: chosen for key, chosen in modes.items() if {mode for mode, _ in chosen} != {"identity"}}


def _scalings(config: Normalize.Config, inputs: Specs, facts: Facts) -> dict[str, list[list[_Scaling]]]:
    """Return the mapping of each dimension of each key, by robot."""
    many = embodiments(inputs) is not None
    scalings: dict[str, list[list[_Scaling]]] = {}
    for key, modes in _modes(config, inputs).items():
        scalings[key] = []
        for own in facts_by_robot(inputs, facts):
            held = statistics_of(key, inputs[key], own)
            if many and not held:  # the robot lacks this state
                scalings[key].append([_Scaling(mode, 0.0, 0.0, configured=mode) for mode, _ in modes])
                continue
            for mode, option in dict.fromkeys(modes):
                _check(key, mode, option, inputs[key], held, narrower=many)
            scalings[key].append([_scaling(key, mode, dim, held) for dim, (mode, _) in enumerate(modes)])
    return scalings


def _check(key: str, mode: str, option: str, spec: Spec, held: Mapping[str, Any], *, narrower: bool) -> None:
    """Raise SpecError or DatasetError for statistics that a mode cannot use."""
    for name in _NEEDS.get(mode, ()):
        if name not in held:
            usable = [other for other, names in _NEEDS.items() if all(n in held for n in names)]
            raise SpecError(
                f"`{mode}` needs `{name}` of `{key}`, which the statistics of the dataset do not hold",
                field=option,
                source=key,
                label=f"no `{name}` of `{key}`",
                help=f"use one of: {', '.join(usable)}"
                if usable
                else f"add statistics of `{key}` to the dataset",
            )
        if len(held[name]) > spec.width or (len(held[name]) < spec.width and not narrower):
            raise SpecError(
                f"statistics of `{key}` have {len(held[name])} dimensions, its values have {spec.width}",
                field=option,
                source=key,
                label=f"{len(held[name])} statistics for {spec.width} dimensions",
                help="recompute the statistics of the dataset",
            )
        if not all(math.isfinite(value) for value in held[name]):
            raise DatasetError(
                f"`{name}` of `{key}` in the statistics of the dataset is not finite: {held[name]}"
            )


def _scaling(key: str, mode: str, dim: int, held: Mapping[str, Any]) -> _Scaling:
    known = "min" in held and "max" in held and dim < len(held["min"])
    ends = (float(held["min"][dim]), float(held["max"][dim])) if known else None
    if mode == "identity":
        return _Scaling(mode, configured=mode, ends=ends)
    configured = mode
    first, second = _NEEDS[mode]
    if dim >= len(held[first]):  # a narrower robot
        return _Scaling(mode, 0.0, 0.0, configured=configured)
    if (
        first == "q01"
        and ends is not None
        and held[second][dim] - held[first][dim] < _RARE * (ends[1] - ends[0])
    ):
        mode, (first, second) = "min_max", _NEEDS["min_max"]
    low, high = float(held[first][dim]), float(held[second][dim])
    if (mode == "mean_std" and high < 0.0) or (mode != "mean_std" and high < low):
        raise DatasetError(
            f"statistics of `{key}` are damaged: dimension {dim} has {first} {low} and {second} {high}"
        )
    if mode == "mean_std":
        center, scale = low, high
    elif mode == "scale":
        center, scale = 0.0, max(abs(low), abs(high))
    else:
        center, scale = (low + high) / 2.0, (high - low) / 2.0
    varies = scale > _CONSTANT * abs(center) and scale > 1e-30
    return _Scaling(mode, center, scale if varies else 0.0, configured, ends)


def _bounds(robots: Sequence[Sequence[_Scaling]]) -> tuple[float, float] | None:
    """Return the smallest and largest normalized value of all dimensions and robots, if all are known."""
    known = [scaling.bounds for own in robots for scaling in own]
    found = [ends for ends in known if ends is not None]
    if len(found) < len(known):
        return None
    return min(low for low, _ in found), max(high for _, high in found)


def _places(dims: Sequence[int]) -> str:
    return f"dimension{'s' if len(dims) > 1 else ''} {', '.join(map(str, dims))}"
