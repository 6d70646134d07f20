"""Exact statistics of a dataset's numeric columns, for normalization.

They are computed from the frames in use rather than read from `stats.json`, which may be absent, lack
quantiles, or cover other episodes. Each frame counts once, although action chunks overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt

    from .lerobot.table import EpisodeTable

QUANTILES = {"q01": 0.01, "q99": 0.99}
_LARGEST = 1e18
_COARSE = 1e-3
"""Rounding error from which a column is unusable, in its unit and as a part of its change within an episode."""
Statistics = dict[str, dict[str, list[float]]]


def compute_statistics(
    table: EpisodeTable, *, episodes: Sequence[int] | None = None, allow: Collection[str] = ()
) -> Statistics:
    """Return the statistics of every column of `table`, over all its episodes or the given ones.

    Each column has lists with one float64 per dimension, in its own units: `mean`, `std` (of the population),
    `min`, `max`, `q01`, `q99` (linearly interpolated), and `count` with the number of frames as its only
    entry. Unusable values (see `unusable`) of the columns `allow` count as zero.

    Raises:
        DatasetError: Another column has an unusable value, or an episode is not in the table.
    """
    rows = _rows(table, episodes)
    found: Statistics = {}
    for key, values in table.columns.items():
        chosen = values[rows].reshape(len(rows), -1).astype(np.float64)
        bad = _unusable(chosen)
        if bad.any() and key not in allow:
            raise DatasetError(_fault(table, key, rows, bad))
        found[key] = {**describe(np.where(bad, 0.0, chosen)), "count": [float(len(chosen))]}
    return found


def pooled_statistics(parts: Sequence[tuple[EpisodeTable, Sequence[int]]]) -> Statistics:
    """Return the statistics of the columns that several tables share, over the given episodes of each together.

    Unusable values count as zero, as in `compute_statistics`.
    """
    rows = [_rows(table, episodes) for table, episodes in parts]
    found: Statistics = {}
    for key in set.intersection(*(set(table.columns) for table, _ in parts)):
        chosen = np.concatenate(
            [
                table.columns[key][own].reshape(len(own), -1).astype(np.float64)
                for (table, _), own in zip(parts, rows, strict=True)
            ]
        )
        found[key] = {
            **describe(np.where(_unusable(chosen), 0.0, chosen)),
            "count": [float(len(chosen))],
        }
    return found


def unusable(table: EpisodeTable) -> dict[str, str]:
    """Return the columns that cannot be learned from, each with a sentence that locates the fault.

    They hold NaN, infinite values or values above 1e18, whose square exceeds float32; or numbers so large
    that float32 rounds away how they change within an episode, such as seconds since 1970.
    """
    rows = np.arange(table.rows)
    found = {}
    for key, values in table.columns.items():
        flat = values.reshape(table.rows, -1)
        if (bad := _unusable(flat)).any():
            found[key] = _fault(table, key, rows, bad)
        elif coarse := _coarse(table, key, flat):
            found[key] = coarse
    return found


def describe(
    values: npt.NDArray[np.float64], quantiles: Mapping[str, float] = QUANTILES
) -> dict[str, list[float]]:
    """Return the statistics of values (N, D) for each of the D dimensions, without their count."""
    levels = np.quantile(values, list(quantiles.values()), axis=0)
    return {
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        **{name: level.tolist() for name, level in zip(quantiles, levels, strict=True)},
    }


class RunningStatistics:
    """The statistics of `compute_statistics`, accumulated over blocks of rows (N, D).

    Quantiles are exact up to `limit` rows; beyond, they use evenly spaced rows, at least half as many.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit, self._stride, self._count = limit, 1, 0
        self._mean: npt.NDArray[np.float64] = np.zeros(1)
        self._squares: npt.NDArray[np.float64] = np.zeros(1)
        self._low: npt.NDArray[np.float64] = np.full(1, np.inf)
        self._high: npt.NDArray[np.float64] = np.full(1, -np.inf)
        self._kept: list[npt.NDArray[np.float64]] = []

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Add rows (N, D)."""
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
        """Return `mean`, `std`, `min`, `max`, `q01` and `q99` of each of the D dimensions, and `count`."""
        low, high = np.quantile(np.concatenate(self._kept), list(QUANTILES.values()), axis=0)
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
        raise DatasetError(f"statistics need at least one loaded episode, found {unknown or 'none'}")
    spans = zip(table.episodes, table.first_rows, table.lengths, strict=True)
    return np.concatenate(
        [np.arange(first, first + length) for index, first, length in spans if index in wanted]
    )


def _unusable(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        bad: npt.NDArray[np.bool_] = ~(np.abs(values) <= _LARGEST)
    return bad


def _coarse(table: EpisodeTable, key: str, values: npt.NDArray[np.float32]) -> str:
    """Return the first dimension of values (N, D) whose changes float32 rounds away; an empty text if none does.

    Whole numbers are exact up to 2^24, and a dimension that is the same everywhere loses nothing.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)))
    for dim in np.flatnonzero((step > _COARSE) & (high > low)):
        column = values[:, dim]
        if step[dim] <= 1.0 and (column == np.rint(column)).all():
            continue
        starts = np.asarray(table.first_rows)
        change = (np.maximum.reduceat(column, starts) - np.minimum.reduceat(column, starts)).max()
        if step[dim] > _COARSE * change:
            return (
                f"column `{key}` ranges from {low[dim]:.9g} to {high[dim]:.9g} in dimension {dim}, where float32 has "
                f"steps of {step[dim]:g}, and changes by at most {change:g} within an episode; keep only other "
                f"dimensions, with slices of `{key}` in `data.columns`, or store differences"
            )
    return ""


def _fault(table: EpisodeTable, key: str, rows: npt.NDArray[np.int64], bad: npt.NDArray[np.bool_]) -> str:
    position, dimension = np.argwhere(bad)[0]
    row = int(rows[position])
    episode, frame = table.locate(row)
    value = table.columns[key].reshape(table.rows, -1)[row, dimension]
    episodes = {table.locate(int(row))[0] for row in rows[bad.any(axis=1)]}
    count = int(bad.sum())
    more = f" ({count} such values in {len(episodes)} of {len(table.episodes)} episodes)" if count > 1 else ""
    return f"column `{key}` has the value {value:.6g} in episode {episode}, frame {frame}, dimension {dimension}{more}"
