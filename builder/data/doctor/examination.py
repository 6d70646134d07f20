"""Examination of a dataset: everything wrong with its files, and what trains badly though it reads well.

for finding in examine("datasets/push"):
    print(finding.severity.name, finding.text)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....schemas.errors import DatasetError
from ..lerobot.columns import Columns
from ..lerobot.features import ACTION
from ..lerobot.layout import Layout, read_layout
from ..lerobot.table import EpisodeTable, read_table
from ..motion import idle_start
from ..statistics import unusable
from .behavior import Motion, behavior_doubts
from .cameras import image_doubts
from .findings import Finding, Severity
from .reading import reading_faults


def examine(path: str | Path, columns: Columns | None = None, *, every_frame: bool = False) -> list[Finding]:
    """Return all findings about the dataset in the directory `path`, the worst first.

    Args:
        path: Directory of the dataset.
        columns: Mapping of columns, see `map_columns`.
        every_frame: Decode every frame of every video, rather than some.
    """
    try:
        layout = read_layout(path, columns)
    except DatasetError as error:
        return [Finding(Severity.ERROR, "metadata", str(error))]
    cameras = [camera for camera in layout.cameras.values() if not camera.unreadable]
    found = [
        Finding(Severity.WARNING, "unreadable camera", f"camera `{camera.name}` {camera.unreadable}")
        for camera in layout.cameras.values()
        if camera.unreadable
    ]
    found += reading_faults(layout, layout.episodes, cameras, frames=None if every_frame else 3)
    if not any(feature.key == ACTION for feature in layout.features.values()):
        return sorted(found, key=lambda finding: finding.severity)
    faulty = {index for finding in found for index in finding.episodes}
    whole = [episode for episode in layout.episodes if episode.index not in faulty]
    if whole:
        table = read_table(layout, layout.choose_episodes([episode.index for episode in whole]))
        found += [
            Finding(Severity.WARNING, "unusable column", f"{fault}; a policy that reads it is refused")
            for fault in unusable(table).values()
        ]
        motion = _motion(layout, table)
        found += behavior_doubts(motion)
        moving = frozenset(
            index
            for index, rows in motion.episodes()
            if idle_start(motion.actions[rows], motion.range) < rows.stop - rows.start - 1
        )
        found += image_doubts(layout, cameras, whole, moving) if cameras else []
    return sorted(found, key=lambda finding: finding.severity)


def _motion(layout: Layout, table: EpisodeTable) -> Motion:
    for values in table.columns.values():
        np.nan_to_num(values, copy=False)
    return Motion(table, layout.fps, layout.features[ACTION].names or ())
