"""Statistics of a dataset as a table and as histograms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...schemas.errors import DatasetError
from .lerobot.features import flat_names
from .lerobot.layout import Layout, read_layout
from .lerobot.table import EpisodeTable, read_table
from .statistics import Statistics, compute_statistics, unusable

COLUMNS = ("min", "q01", "mean", "std", "q99", "max")
_BINS = 60


def numbers(path: str | Path) -> tuple[Layout, EpisodeTable, Statistics]:
    """Return the metadata, the states and actions of all episodes, and their statistics; videos stay closed.

    Raises:
        DatasetError: The dataset is missing or damaged.
    """
    layout = read_layout(path)
    table = read_table(layout, layout.episodes)
    bad = unusable(table)
    return layout, table, compute_statistics(table, allow=bad)


def lines(layout: Layout, statistics: Statistics) -> list[str]:
    """Return the statistics of each dimension, one a line, below the key that it belongs to."""
    shown = []
    for key, held in statistics.items():
        names = _names(layout, key, len(held["mean"]))
        width = max(len(name) for name in (*names, "dimension"))
        shown.append(f"{key} ({int(held['count'][0]):,} frames)")
        shown.append(f"  {'dimension':{width}}" + "".join(f"{name:>12}" for name in COLUMNS))
        for place, name in enumerate(names):
            shown.append(f"  {name:{width}}" + "".join(f"{held[c][place]:12.5g}" for c in COLUMNS))
    return shown


def plot(layout: Layout, table: EpisodeTable, output: Path) -> None:
    """Write histograms of all dimensions to an image, a PDF or an SVG.

    Raises:
        DatasetError: The file cannot be written, or its format is unknown.
    """
    from matplotlib.figure import Figure

    panels = [
        (f"{key}: {name}" if len(names) > 1 else key, values[:, place])
        for key, matrix in table.columns.items()
        for values in (matrix.reshape(table.rows, -1),)
        for names in (_names(layout, key, values.shape[1]),)
        for place, name in enumerate(names)
    ]
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.2 * across, 2.2 * down), layout="constrained")
    for place, (title, values) in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, place)
        axes.hist(values[np.isfinite(values)], bins=_BINS)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6)
    try:
        figure.savefig(output)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{output} cannot be written ({error}); name a file such as statistics.png"
        ) from error


def _names(layout: Layout, key: str, size: int) -> Sequence[str]:
    return flat_names(layout.features[key]) or tuple(map(str, range(size)))


__all__ = ["lines", "numbers", "plot"]
