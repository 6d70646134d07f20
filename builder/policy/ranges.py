"""Values at deployment held against those of training: what is not finite or absurd is refused before a robot moves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...schemas.errors import SpecError

ABSURD, UNUSUAL = 1e4, 10.0
"""Distances from the values of training, in units of their spread, that are refused and that are warned of."""

log = logging.getLogger(__name__)


def finite(key: str, values: Tensor, help: str) -> None:
    """Raise SpecError for values (..., D) that hold NaN or an infinity."""
    if not (good := values.isfinite()).all():
        dims = sorted(set((~good).nonzero()[:, -1].tolist())) if values.ndim else []
        raise SpecError(
            f"`{key}` is not finite{f' in dimension {_listed(dims)}' if dims else ''}: {_shown(values)}",
            help=help,
        )


class Ranges:
    """Smallest and largest values of states and actions in the training episodes; of one robot."""

    def __init__(self, statistics: Mapping[str, Any]) -> None:
        self._bounds = {
            key: (torch.tensor(held["min"]).float(), torch.tensor(held["max"]).float())
            for key, held in statistics.items()
            if isinstance(held, Mapping) and {"min", "max"} <= held.keys()
        }
        self._warned: set[str] = set()

    def check(self, key: str, values: Tensor, help: str) -> None:
        """Raise SpecError for values (..., D) that are absurd beside those of training; warn once of unusual ones."""
        bounds = self._bounds.get(key)
        if bounds is None or bounds[0].shape != values.shape[-1:]:
            return
        low, high = (bound.to(values.device) for bound in bounds)
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
                f"`{key}` is {worst:g} in dimension {dim}, which lay between {low[dim].item():g} and "
                f"{high[dim].item():g} in training"
            )
            if limit == ABSURD:
                raise SpecError(message, help=help)
            self._warned.add(key)
            log.warning("%s; %s (said once)", message, help)

    def clamp(self, key: str, values: Tensor) -> Tensor:
        """Values (..., D) brought into the range of training. Raises SpecError where that is not known."""
        if key not in self._bounds or self._bounds[key][0].shape != values.shape[-1:]:
            raise SpecError(
                f"the policy holds no range of `{key}` to clamp to",
                help="leave `clamp` out; statistics with `min` and `max` come with training",
            )
        low, high = (bound.to(values) for bound in self._bounds[key])
        return values.clamp(low, high)


def _listed(dims: list[int]) -> str:
    return ", ".join(map(str, dims[:6])) + (" and others" if len(dims) > 6 else "")


def _shown(values: Tensor) -> str:
    flat = values.flatten()
    text = ", ".join(f"{value:g}" for value in flat[:8].tolist())
    return f"[{text}{', ...' if flat.numel() > 8 else ''}]"


__all__ = ["Ranges", "finite"]
