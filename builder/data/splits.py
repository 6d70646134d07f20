"""Split of a dataset into training and validation by whole episodes."""

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

    The validation split has `validation_fraction` of the episodes, rounded, but at least one and not all.
    Episodes are ranked by a hash of the seed and their index, so the result depends on nothing else, such as
    their order, the machine or a random generator.

    Raises:
        DatasetError: The fraction is not in [0, 1), an episode is given twice, or there are too few to split.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise DatasetError(
            f"the validation fraction is {validation_fraction}; use at least 0 and less than 1"
        )
    ordered = sorted(int(episode) for episode in episodes)
    if len(set(ordered)) < len(ordered):
        raise DatasetError("an episode occurs twice; name each one once")
    if validation_fraction == 0.0:
        return tuple(ordered), ()
    if len(ordered) < 2:
        raise DatasetError(
            f"{len(ordered)} episodes cannot be split into training and validation; "
            "add episodes or set the validation fraction to 0"
        )
    held_out = min(max(round(len(ordered) * validation_fraction), 1), len(ordered) - 1)
    ranked = sorted(ordered, key=lambda episode: hashlib.sha256(f"{seed}:{episode}".encode()).digest())
    return tuple(sorted(ranked[held_out:])), tuple(sorted(ranked[:held_out]))
