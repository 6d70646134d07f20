"""Range checks of values at deployment: those not finite or absurd are refused before a robot moves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....schemas.errors import SpecError

ABSURD, UNUSUAL = 1e4, 10.0
"""Distances from the range of training, in units of its width, that raise an error and that log a warning."""

log = logging.getLogger(__name__)


def finite(key: str, values: Tensor, help: str) -> None:
    """Raise SpecError if values (..., D) hold NaN or an infinity."""
    if not (good := values.isfinite()).all():
        dims = sorted(set((~good).nonzero()[:, -1].tolist())) if values.ndim else []
        raise SpecError(
            f"`{key}` is not finite{f' in dimension {_listed(dims)}' if dims else ''}: {_shown(values)}",
            help=help,
        )


class Ranges:
    """Smallest and largest values of states and actions in the training episodes of one robot."""

    def __init__(self, statistics: Mapping[str, Any]) -> None:
        self._bounds = {
            key: (torch.tensor(held["min"]).float(), torch.tensor(held["max"]).float())
            for key, held in statistics.items()
            if isinstance(held, Mapping) and {"min", "max"} <= held.keys()
        }
        self._usual = {key: _usual(low, high) for key, (low, high) in self._bounds.items()}
        self._warned: set[str] = set()

    def check(self, key: str, values: Tensor, help: str) -> None:
        """Raise SpecError for values (..., D) far outside the training range; warn once of unusual ones."""
        bounds = self._bounds.get(key)
        if bounds is None or bounds[0].shape != values.shape[-1:]:
            return
        low, high = (bound.to(values.device) for bound in bounds)
        least, most = (bound.to(values.device) for bound in self._usual[key])
        if not ((values < least) | (values > most)).any():
            return
        floor = torch.maximum(low.abs(), high.abs()).clamp(min=1e-2)
        spread = torch.where(high > low, high - low, floor)
        away = torch.maximum(low - values, values - high)
        for limit, size in ((ABSURD, torch.maximum(spread, floor)), (UNUSUAL, spread)):
            beyond = (away > limit * size) & ((limit == ABSURD) | (high > low))
            if not beyond.any() or (limit == UNUSUAL and key in self._warned):
                continue
            dim = int(beyond.nonzero()[0, -1])
            worst = values[..., dim].flatten()[away[..., dim].argmax()].item()
            message = (
                f"`{key}` is {worst:g} in dimension {dim}, which ranged from {low[dim].item():g} to "
                f"{high[dim].item():g} in training"
            )
            if limit == ABSURD:
                raise SpecError(message, help=help)
            self._warned.add(key)
            log.warning("%s; %s (logged once)", message, help)

    def clamp(self, key: str, values: Tensor) -> Tensor:
        """Clamp values (..., D) to the range of training. Raise SpecError if it is unknown."""
        if key not in self._bounds or self._bounds[key][0].shape != values.shape[-1:]:
            raise SpecError(
                f"the policy has no range of `{key}` to clamp to",
                help="leave `clamp` out; training stores statistics with `min` and `max`",
            )
        low, high = (bound.to(values) for bound in self._bounds[key])
        return values.clamp(low, high)


def _usual(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range within which there is nothing to say of values."""
    floor = torch.maximum(low.abs(), high.abs()).clamp(min=1e-2)
    width = torch.where(high > low, UNUSUAL * (high - low), ABSURD * floor)
    return low - width, high + width


def _listed(dims: list[int]) -> str:
    return ", ".join(map(str, dims[:6])) + (" and others" if len(dims) > 6 else "")


def _shown(values: Tensor) -> str:
    flat = values.flatten()
    text = ", ".join(f"{value:g}" for value in flat[:8].tolist())
    return f"[{text}{', ...' if flat.numel() > 8 else ''}]"


__all__ = ["Ranges", "finite"]
