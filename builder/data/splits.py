"""Splits a dataset into training and validation by whole episodes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ...schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence


def split_episodes(
    episodes: Sequence[int], *, validation_fraction: float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split episode indices into (training, validation), each in ascending order.

    The validation side gets `validation_fraction` of the episodes, rounded, but at least one and never all.
    Episodes are ranked by a hash of the seed and their index, so the outcome depends on nothing else: not
    on the order given, the machine, or a library's random generator.

    Raises:
        DatasetError: the fraction is not in [0, 1), an episode is given twice, or there are too few to split.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise DatasetError(
            f"the validation fraction is {validation_fraction}; it must be at least 0 and below 1"
        )
    ordered = sorted(int(episode) for episode in episodes)
    if len(set(ordered)) < len(ordered):
        raise DatasetError("an episode to be split is given twice. Name each one once")
    if validation_fraction == 0.0:
        return tuple(ordered), ()
    if len(ordered) < 2:
        raise DatasetError(
            f"{len(ordered)} episodes cannot be split into training and validation. "
            "Add episodes or set the validation fraction to 0"
        )
    held_out = min(max(round(len(ordered) * validation_fraction), 1), len(ordered) - 1)
    ranked = sorted(ordered, key=lambda episode: hashlib.sha256(f"{seed}:{episode}".encode()).digest())
    return tuple(sorted(ranked[held_out:])), tuple(sorted(ranked[:held_out]))
