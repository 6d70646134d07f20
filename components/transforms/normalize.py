"""Normalise states and actions by the statistics of the dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import DatasetError, SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Range, Spec, Specs
from ..base import Batch, Facts, Transform
from ..embodiments import each_own, embodiments, facts_by_robot, ids_of

Mode = Literal["mean_std", "min_max", "q99", "binary", "identity"]

_NEEDS: dict[str, tuple[str, str]] = {
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "q99": ("q01", "q99"),
    "binary": ("min", "max"),
}
_CONSTANT = 1e-6  # spread, relative to the values, under which float32 holds hardly more than rounding


class Normalize(Transform):
    """Maps each dimension of states and actions to a common range; computes in float32 whatever the model's dtype.

    | mode | maps | to |
    |---|---|---|
    | `mean_std` | mean, mean + std | 0, 1 |
    | `min_max` | min, max | -1, 1 |
    | `q99` | 1st and 99th percentile | -1, 1; values beyond are not clipped, so that it can be inverted |
    | `binary` | below and above the middle of min and max | -1, 1 |
    | `identity` | nothing is changed | |

    A dimension that is constant in the data maps to 0, and back to its constant. Everything but `binary` is undone
    exactly, up to float32 rounding; `binary` returns min or max.

    Of several robots, each sample is mapped by the statistics of its own. Dimensions that a robot does not have are 0.
    """

    class Config(PartConfig):
        """Normalise states and actions by the statistics of the dataset."""

        type: Literal["normalize"]
        """Normalise states and actions; undone for the actions that come out."""
        keys: list[str] | None = Field(default=None, min_length=1)
        """Keys to normalise; by default every state and the action."""
        mode: Mode = "mean_std"
        """Range that values are brought to: `mean_std`, or -1 to 1 by `min_max`, by `q99` or as `binary`."""
        modes: dict[str, Mode] = Field(default_factory=dict)
        """Modes of single keys that differ from `mode`, such as `{action: min_max}`."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        # Plain numbers, not buffers: they must survive a cast of the model to bf16 and construction on meta.
        self._ranges = _ranges(config, inputs, facts)
        self._many = embodiments(inputs) is not None
        self._tensors: dict[tuple[str, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, marked as normalised; raises SpecError where statistics are missing or do not fit, or done twice."""
        changed = _ranges(config, inputs, facts)
        for key in changed:
            if inputs[key].range is Range.NORMALISED:
                raise SpecError(
                    f"`{key}` is normalised already",
                    field=None if config.keys is None else f"keys.{config.keys.index(key)}",
                    source=key,
                    trait="range",
                    label="again",
                    help="remove one of the two, or give each its own values under `keys`",
                )
        return {**inputs, **{key: replace(inputs[key], range=Range.NORMALISED) for key in changed}}

    @classmethod
    def tiny(cls, directory: Path) -> Config:
        return cls.Config(type="normalize", modes={"action": "min_max"})

    def forward(self, batch: Batch) -> dict[str, Any]:
        """A new batch with normalised values (float32)."""
        return self._map(batch, _forward)

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """A new batch with values in the units of the dataset (float32)."""
        return self._map(batch, _inverse)

    def _map(self, batch: Batch, step: Callable[..., Tensor]) -> dict[str, Any]:
        changed = {
            key: step(batch[key].float(), *self._for(key, batch), mode == "binary")
            for key, (mode, _, _) in self._ranges.items()
            if key in batch
        }
        return {**batch, **changed}

    def _for(self, key: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, scale and which dims vary, each (D,), or for several robots (B, 1, D)."""
        centre, scale, varies = self._on(key, batch[key].device)
        if not self._many:
            return centre[0], scale[0], varies[0]
        ids = ids_of(batch)
        return tuple(each_own(table, ids, batch[key]) for table in (centre, scale, varies))  # type: ignore[return-value]

    def _on(self, key: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, scale and which dims vary, each (R, D), as tensors of `device`."""
        if (key, device) not in self._tensors:
            _, centre, scale = self._ranges[key]
            with torch.inference_mode(False):  # else training could never use what inference made first
                self._tensors[key, device] = (
                    torch.tensor(centre, dtype=torch.float32, device=device),
                    torch.tensor(
                        [[s or 1.0 for s in row] for row in scale], dtype=torch.float32, device=device
                    ),
                    torch.tensor([[s > 0.0 for s in row] for row in scale], device=device),
                )
        return self._tensors[key, device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tensors": {}}


def _forward(values: Tensor, centre: Tensor, scale: Tensor, varies: Tensor, binary: bool) -> Tensor:
    normal = torch.where(values > centre, 1.0, -1.0) if binary else (values - centre) / scale
    return torch.where(varies, normal, 0.0)


def _inverse(values: Tensor, centre: Tensor, scale: Tensor, varies: Tensor, binary: bool) -> Tensor:
    normal = torch.where(values > 0.0, 1.0, -1.0) if binary else values
    return torch.where(varies, normal * scale + centre, centre)


Scaling = tuple[str, list[list[float]], list[list[float]]]


def _ranges(config: Normalize.Config, inputs: Specs, facts: Facts) -> dict[str, Scaling]:
    """Mode, centre and scale of each key, by robot; the scale is 0 where a dimension is constant, or not there."""
    known = {key: spec for key, spec in inputs.items() if spec.kind in (Kind.STATE, Kind.ACTION)}
    wanted = list(known) if config.keys is None else config.keys
    for place, names, choice in (("keys", wanted, known), ("modes", list(config.modes), wanted)):
        for position, key in enumerate(names):
            if key not in choice:
                raise SpecError(
                    f"`{key}` is not among the values to normalise",
                    field=f"keys.{position}" if place == "keys" else f"modes.{key}",
                    label="not normalised",
                    help=f"values are: {', '.join(choice) or 'none'}",
                )
    ranges: dict[str, Scaling] = {}
    for key in wanted:
        mode = config.modes.get(key, config.mode)
        if mode != "identity":
            field = f"modes.{key}" if key in config.modes else "mode"
            many = embodiments(inputs) is not None
            rows = []
            for own in facts_by_robot(inputs, facts):
                held = own.get("statistics", {})
                spec, has = known[key], not many or key in held
                centre, scale = _range(key, mode, field, spec, held, many) if has else ([], [])
                missing = [0.0] * (spec.width - len(scale))
                rows.append((centre + missing, scale + missing))
            ranges[key] = (mode, [centre for centre, _ in rows], [scale for _, scale in rows])
    return ranges


def _range(
    key: str, mode: str, field: str, spec: Spec, statistics: Mapping[str, Any], narrower: bool
) -> tuple[list[float], list[float]]:
    first, second = _NEEDS[mode]
    held = statistics.get(key, {})
    for name in (first, second):
        if name not in held:
            usable = [other for other, names in _NEEDS.items() if all(n in held for n in names)]
            raise SpecError(
                f"`{mode}` needs `{name}` of `{key}`, which the statistics of the dataset do not hold",
                field=field,
                source=key,
                label=f"no `{name}` of `{key}`",
                help=f"use one of: {', '.join(usable)}"
                if usable
                else f"add statistics of `{key}` to the dataset",
            )
        if len(held[name]) > spec.width or (len(held[name]) < spec.width and not narrower):
            raise SpecError(
                f"statistics of `{key}` have {len(held[name])} dimensions, its values have {spec.width}",
                field=field,
                source=key,
                label=f"{len(held[name])} statistics for {spec.width} dimensions",
                help="recompute the statistics of the dataset",
            )
        if not all(math.isfinite(value) for value in held[name]):
            raise DatasetError(
                f"`{name}` of `{key}` in the statistics of the dataset is not finite: {held[name]}"
            )
    pairs = list(zip(map(float, held[first]), map(float, held[second]), strict=True))
    for position, (low, high) in enumerate(pairs):
        if (mode == "mean_std" and high < 0.0) or (mode != "mean_std" and high < low):
            raise DatasetError(
                f"statistics of `{key}` are damaged: dimension {position} has {first} {low} and {second} {high}"
            )
    if mode == "mean_std":
        centre, scale = [mean for mean, _ in pairs], [std for _, std in pairs]
    else:
        centre, scale = (
            [(low + high) / 2.0 for low, high in pairs],
            [(high - low) / 2.0 for low, high in pairs],
        )
    return centre, [
        s if s > _CONSTANT * abs(c) and s > 1e-30 else 0.0 for s, c in zip(scale, centre, strict=True)
    ]
