"""Fitting of a head to the training chunks before it is built, such as a vocabulary of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch

from ...components.base import ActionHead, Batch, Chunks
from ...components.embodiments import padding_mask
from ...schemas.errors import PolicysmithError, SpecError
from ..wiring.parts import Parts, Problem, WiringError
from ..wiring.solve import Wiring
from .sources import DataPlan
from .statistics import PlacedTransform

_MOST = 200_000  # chunks; more take memory without changing a vocabulary


def fit_head(parts: Parts, wiring: Wiring, data: DataPlan) -> dict[str, Any]:
    """Return the facts of the head after fitting it to the training episodes.

    Raise WiringError if that fails.
    """
    site, head = parts.head, cast(type[ActionHead], parts.head.part)
    known: Mapping[str, Any] = wiring.facts.get(site.key, {})
    inputs = {**wiring.features, **wiring.given}
    try:
        return {**known, **head.fit(site.config, inputs, known, lambda: _chunks(parts, wiring, data))}
    except WiringError:
        raise
    except PolicysmithError as error:
        found = error if isinstance(error, SpecError) else SpecError(str(error))
        raise WiringError([Problem(site.path, found)]) from error


@torch.no_grad()
def _chunks(parts: Parts, wiring: Wiring, data: DataPlan) -> Chunks:
    """Return transformed chunks (N, H, A), evenly spaced if there are many, and their padding."""
    transforms = [
        PlacedTransform(site, wiring.into(index), wiring.facts.get(site.key, {}))
        for index, site in enumerate(parts.transforms)
    ]
    stride = math.ceil(sum(source.frames(source.training) for source in data.sources) / _MOST)
    actions, pads = [], []
    for given in data.numbers():
        batch: Batch = {key: value[::stride] for key, value in given.items()}
        for transform in transforms:
            batch = transform(batch)
        actions.append(batch["action"])
        pads.append(padding_mask(batch))
    return torch.cat(actions), torch.cat(pads)


__all__ = ["fit_head"]
