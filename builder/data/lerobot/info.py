"""Summary of a dataset for the wiring of a policy, from metadata only and without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .columns import describe, unread_columns
from .features import ACTION, STATE, flat_names
from .layout import read_layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .columns import Columns
    from .layout import Feature, Layout


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Facts about a dataset that are known before decoding.

    Attributes:
        cameras: Height and width in pixels, by name.
        unreadable: Reason why a camera is not 8-bit RGB, such as depth, by name.
        vectors: Size of every numeric `observation.*`, including the state.
        state_dim: Size of the state; 0 without one.
        action_dim: Size of an action; 0 without one.
        episode_lengths: Number of frames of each of `episodes`.
        fps: Frames per second.
        columns: Description of `action` and of each of `vectors`.
        unread: Description of columns that no policy can read under their names.
    """

    cameras: Mapping[str, tuple[int, int]]
    unreadable: Mapping[str, str]
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
    columns: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of dimensions, by numeric key, if the dataset has one for each."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Description of the parts of states and actions that meta/modality.json names."""


def inspect(path: str | Path, columns: Columns | None = None) -> DatasetInfo:
    """Summarize the dataset in the directory `path`, with its columns mapped by `columns`.

    Raises:
        DatasetError: As raised by `read_layout`.
    """
    return summarize(read_layout(path, columns))


def summarize(layout: Layout) -> DatasetInfo:
    """Summarize a dataset from its layout."""
    numeric = {key: feature for key, feature in layout.features.items() if feature.is_policy_input_or_target}
    rotations = layout.modality.rotations
    sizes = {key: feature.size for key, feature in numeric.items()}
    return DatasetInfo(
        cameras={
            name: (camera.height, camera.width)
            for name, camera in layout.cameras.items()
            if not camera.unreadable
        },
        unreadable={name: camera.unreadable for name, camera in layout.cameras.items() if camera.unreadable},
        vectors={key: size for key, size in sizes.items() if key != ACTION},
        state_dim=sizes.get(STATE, 0),
        action_dim=sizes.get(ACTION, 0),
        state_names=_names(numeric.get(STATE), "state"),
        action_names=_names(numeric.get(ACTION), "action"),
        episodes=tuple(episode.index for episode in layout.episodes),
        episode_lengths=tuple(e.length - layout.skipped.get(e.index, 0) for e in layout.episodes),
        fps=layout.fps,
        tasks=tuple(text for _, text in sorted(layout.tasks.items())),
        codebase_version=layout.codebase_version,
        columns={key: describe(feature) for key, feature in numeric.items()},
        unread=unread_columns(layout.features),
        names={key: names for key, feature in numeric.items() if (names := flat_names(feature))},
        parts={
            name: f"`{part.origin}`" + (f", {rotations[name]}" if name in rotations else "")
            for name, part in layout.modality.features.items()
        },
    )


def _names(feature: Feature | None, stem: str) -> tuple[str, ...]:
    """Return the names of the dimensions, numbered if the dataset has none that fit."""
    if feature is None:
        return ()
    return flat_names(feature) or tuple(f"{stem}_{position}" for position in range(feature.size))
