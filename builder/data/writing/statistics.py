"""The ten statistics that LeRobot stores of every feature, per episode and for the whole dataset.

They are exact: vectors are kept and images counted in 256 bins per channel, so quantiles need no
approximation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import describe

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)


class VectorSummary:
    """Statistics of a feature (T, D)."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.float64]] = []

    def add(self, values: NDArray[Any]) -> None:
        """Add rows (T, D)."""
        self._rows.append(np.asarray(values, dtype=np.float64))

    def result(self) -> dict[str, list[Any]]:
        """Return D numbers per statistic; `count` is the number of rows."""
        rows = np.concatenate(self._rows)
        return _ordered(describe(rows, QUANTILES), len(rows))


class ImageSummary:
    """Statistics per channel of images (T, 3, H, W) uint8, scaled to [0, 1]."""

    def __init__(self) -> None:
        self._bins = np.zeros((3, 256), dtype=np.int64)
        self._frames = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        """Add images (T, 3, H, W)."""
        self._frames += len(images)
        for channel in range(3):
            self._bins[channel] += np.bincount(images[:, channel].ravel(), minlength=256)

    def result(self) -> dict[str, list[Any]]:
        """Return numbers nested as (3, 1, 1) per statistic; `count` is the number of images."""
        levels = np.arange(256) / 255.0
        total = self._bins.sum(1)
        mean = self._bins @ levels / total
        variance = (self._bins * (levels - mean[:, None]) ** 2).sum(1) / total
        numbers = {
            "min": levels[(self._bins > 0).argmax(1)],
            "max": levels[255 - (self._bins[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(variance),
            **{name: self._quantile(share) for name, share in QUANTILES.items()},
        }
        return _ordered(
            {name: value[:, None, None].tolist() for name, value in numbers.items()}, self._frames
        )

    def _quantile(self, share: float) -> NDArray[np.float64]:
        """Return the smallest level that at least `share` of the pixels do not exceed."""
        cumulative = self._bins.cumsum(1)
        reached = cumulative >= share * cumulative[:, -1:]
        levels: NDArray[np.float64] = reached.argmax(1) / 255.0
        return levels


def _ordered(numbers: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    numbers["count"] = [count]
    return {name: numbers[name] for name in STATISTICS}
