"""Exact statistics of a dataset's numeric columns, for normalisation.

They are computed from the frames that are used rather than read from the dataset's own `stats.json`, which may
be absent, lack quantiles, or cover other episodes. Each frame counts once, whatever the action chunks overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from .table import EpisodeTable

Statistics = dict[str, dict[str, list[float]]]


def compute_statistics(table: EpisodeTable, *, episodes: Sequence[int] | None = None) -> Statistics:
    """Statistics of every column of `table`, over all its episodes or the given ones.

    Returns, for each column, lists with one number a dimension in the column's own units: `mean`, `std` (of
    the population), `min`, `max`, `q01`, `q99` (interpolated linearly between order statistics), and `count`
    with the number of frames as its only entry. All in float64, ready for JSON.

    Raises:
        DatasetError: a value is NaN or infinite, or an episode is not in the table.
    """
    rows = _rows(table, episodes)
    return {key: _describe(_finite(table, key, rows)) for key in table.columns}


def _rows(table: EpisodeTable, episodes: Sequence[int] | None) -> npt.NDArray[np.int64]:
    if episodes is None:
        return np.arange(table.rows)
    unknown = sorted(set(episodes) - set(table.episodes))
    if unknown or not len(episodes):
        raise DatasetError(f"statistics need episodes that were read, but {unknown or 'none'} were asked for")
    spans = zip(table.episodes, table.first_rows, table.lengths, strict=True)
    return np.concatenate(
        [np.arange(first, first + length) for index, first, length in spans if index in episodes]
    )


def _finite(table: EpisodeTable, key: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    values = table.columns[key][rows].reshape(len(rows), -1).astype(np.float64)
    broken = np.argwhere(~np.isfinite(values))
    if len(broken):
        position, dimension = broken[0]
        episode, frame = table.locate(int(rows[position]))
        raise DatasetError(
            f"column `{key}` holds {values[position, dimension]} in episode {episode}, frame {frame}, dimension "
            f"{dimension} ({len(broken)} such values in all). Repair the episode or leave it out"
        )
    return values


def _describe(values: npt.NDArray[np.float64]) -> dict[str, list[float]]:
    """Describe (N, D) values for each of the D dimensions."""
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    return {
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "q01": low.tolist(),
        "q99": high.tolist(),
        "count": [float(len(values))],
    }
