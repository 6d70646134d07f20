"""Exact statistics of a dataset's numeric columns, for normalisation.

They are computed from the frames that are used rather than read from the dataset's own `stats.json`, which may
be absent, lack quantiles, or cover other episodes. Each frame counts once, whatever the action chunks overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from .lerobot.table import EpisodeTable

_LARGEST = 1e18
Statistics = dict[str, dict[str, list[float]]]


def compute_statistics(
    table: EpisodeTable, *, episodes: Sequence[int] | None = None, allow: Collection[str] = ()
) -> Statistics:
    """Statistics of every column of `table`, over all its episodes or the given ones.

    Returns, for each column, lists with one number a dimension in the column's own units: `mean`, `std` (of
    the population), `min`, `max`, `q01`, `q99` (interpolated linearly between order statistics), and `count`
    with the number of frames as its only entry. All in float64, ready for JSON. Values of the columns `allow` that are
    no numbers to compute with (see `unusable`) count as zero.

    Raises:
        DatasetError: a value of another column is NaN, infinite or absurdly large, or an episode is not in the table.
    """
    rows = _rows(table, episodes)
    found: Statistics = {}
    for key, values in table.columns.items():
        chosen = values[rows].reshape(len(rows), -1).astype(np.float64)
        bad = _unusable(chosen)
        if bad.any() and key not in allow:
            raise DatasetError(_fault(table, key, rows, bad))
        found[key] = _describe(np.where(bad, 0.0, chosen))
    return found


def unusable(table: EpisodeTable) -> dict[str, str]:
    """Return, by column that holds NaN, an infinity or a value above 1e18 (whose square float32 cannot hold), where."""
    rows = np.arange(table.rows)
    bad = {key: _unusable(values.reshape(table.rows, -1)) for key, values in table.columns.items()}
    return {key: _fault(table, key, rows, found) for key, found in bad.items() if found.any()}


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
    wanted = set(episodes)
    unknown = sorted(wanted - set(table.episodes))
    if unknown or not len(episodes):
        raise DatasetError(f"statistics need episodes that were read, but {unknown or 'none'} were asked for")
    spans = zip(table.episodes, table.first_rows, table.lengths, strict=True)
    return np.concatenate(
        [np.arange(first, first + length) for index, first, length in spans if index in wanted]
    )


def _unusable(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        bad: npt.NDArray[np.bool_] = ~(np.abs(values) <= _LARGEST)
    return bad


def _fault(table: EpisodeTable, key: str, rows: npt.NDArray[np.int64], bad: npt.NDArray[np.bool_]) -> str:
    position, dimension = np.argwhere(bad)[0]
    row = int(rows[position])
    episode, frame = table.locate(row)
    value = table.columns[key].reshape(table.rows, -1)[row, dimension]
    episodes = {table.locate(int(row))[0] for row in rows[bad.any(axis=1)]}
    count = int(bad.sum())
    more = f" ({count} such values in {len(episodes)} of {len(table.episodes)} episodes)" if count > 1 else ""
    return (
        f"column `{key}` holds {value:.6g} in episode {episode}, frame {frame}, dimension {dimension}{more}"
    )


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
