"""A dataset in summary, for wiring a policy to it. Reads metadata only and never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .features import ACTION, STATE
from .layout import read_layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .layout import Feature


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a policy must know of a dataset before any of it is decoded.

    `cameras` maps a name to (height, width) in pixels. `vectors` maps every numeric `observation.*` column,
    the state included, to its size. `state_dim` and `action_dim` are 0 where the dataset has no such column.
    `episodes` and `episode_lengths` (in frames) run in parallel; `fps` is in frames per second.
    """

    cameras: Mapping[str, tuple[int, int]]
    vectors: Mapping[str, int]
    state_dim: int
    action_dim: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: tuple[int, ...]
    episode_lengths: tuple[int, ...]
    fps: float
    tasks: tuple[str, ...]
    codebase_version: str
    names: Mapping[str, tuple[str, ...]]
    """Names of the dimensions, by numeric key; only where the dataset gives one for each."""


def inspect(path: str | Path) -> DatasetInfo:
    """Summarise the dataset in the directory `path`.

    Raises:
        DatasetError: as `read_layout`.
    """
    layout = read_layout(path)
    numeric = {key: feature for key, feature in layout.features.items() if feature.is_policy_input_or_target}
    sizes = {key: _size(feature) for key, feature in numeric.items()}
    return DatasetInfo(
        cameras={name: (camera.height, camera.width) for name, camera in layout.cameras.items()},
        vectors={key: size for key, size in sizes.items() if key != ACTION},
        state_dim=sizes.get(STATE, 0),
        action_dim=sizes.get(ACTION, 0),
        state_names=_names(numeric.get(STATE), "state"),
        action_names=_names(numeric.get(ACTION), "action"),
        episodes=tuple(episode.index for episode in layout.episodes),
        episode_lengths=tuple(episode.length for episode in layout.episodes),
        fps=layout.fps,
        tasks=tuple(text for _, text in sorted(layout.tasks.items())),
        codebase_version=layout.codebase_version,
        names={
            key: feature.names
            for key, feature in numeric.items()
            if feature.names is not None and len(feature.names) == sizes[key]
        },
    )


def _size(feature: Feature) -> int:
    size = 1
    for extent in feature.shape:
        size *= extent
    return size


def _names(feature: Feature | None, stem: str) -> tuple[str, ...]:
    """The names of the dimensions; numbered where the dataset gives none that fit."""
    if feature is None:
        return ()
    size = _size(feature)
    if feature.names is not None and len(feature.names) == size:
        return feature.names
    return tuple(f"{stem}_{position}" for position in range(size))
