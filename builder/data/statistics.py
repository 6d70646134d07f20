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


class RunningStatistics:
    """The statistics of `compute_statistics` for rows (N, D) that come in pieces.

    Quantiles are exact up to `limit` rows; of more, evenly spaced ones are kept, at least half as many.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit, self._stride, self._count = limit, 1, 0
        self._mean: npt.NDArray[np.float64] = np.zeros(1)
        self._squares: npt.NDArray[np.float64] = np.zeros(1)
        self._low: npt.NDArray[np.float64] = np.full(1, np.inf)
        self._high: npt.NDArray[np.float64] = np.full(1, -np.inf)
        self._kept: list[npt.NDArray[np.float64]] = []

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Take rows (N, D) in, after those before."""
        if not len(rows):
            return
        values, seen, count = rows.astype(np.float64), self._count, len(rows)
        total, mean = seen + count, values.mean(axis=0)
        shift = mean - self._mean
        self._squares = (
            self._squares + np.square(values - mean).sum(axis=0) + shift**2 * (seen * count / total)
        )
        self._mean = self._mean + shift * (count / total)
        self._low, self._high = (
            np.minimum(self._low, values.min(axis=0)),
            np.maximum(self._high, values.max(axis=0)),
        )
        self._count = total
        self._kept.append(values[-seen % self._stride :: self._stride])
        while sum(map(len, self._kept)) > self._limit:
            self._kept, self._stride = [np.concatenate(self._kept)[::2]], 2 * self._stride

    def result(self) -> dict[str, list[float]]:
        """`mean`, `std`, `min`, `max`, `q01`, `q99` for each of the D dimensions, and `count`."""
        low, high = np.quantile(np.concatenate(self._kept), (0.01, 0.99), axis=0)
        return {
            "mean": self._mean.tolist(),
            "std": np.sqrt(self._squares / self._count).tolist(),
            "min": self._low.tolist(),
            "max": self._high.tolist(),
            "q01": low.tolist(),
            "q99": high.tolist(),
            "count": [float(self._count)],
        }


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
