"""Layout of a LeRobot dataset on disk (v2.0, v2.1 or v3.0), read from metadata only.

    layout = read_layout("datasets/push")
    layout.fps, layout.cameras["top"].height, layout.episode(3).length

Neither parquet data nor videos are opened here; `table` and `frames` compare them with the metadata, for the
episodes that are used.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ....schemas.errors import DatasetError
from ....schemas.paths import expanded, names_in
from ....schemas.wording import did_you_mean, near
from .columns import map_columns
from .episodes import EpisodeInfo, VideoSpan, read_tables_v2, read_tables_v3
from .features import RGB_ONLY, TASK_INDEX, Camera, Feature, Storage, parse_cameras, parse_features
from .files import read_json
from .modality import Modality, read_modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .columns import Columns

__all__ = ["Camera", "EpisodeInfo", "Feature", "Layout", "Storage", "VideoSpan", "read_layout"]

_MOST_FPS = 100_000
_READERS = {"v2.0": read_tables_v2, "v2.1": read_tables_v2, "v3.0": read_tables_v3}


@dataclass(frozen=True, slots=True)
class Layout:
    """The metadata of a dataset.

    Attributes:
        fps: Frames per second.
        episodes: Episodes in ascending order of their index.
        tasks: Texts by `task_index`.
        metadata_files: Files that the metadata was read from.
        modality: Named slices of columns.
        task_column: Column with the `task_index` of each frame.
        skipped: Number of frames to leave out at the start of episodes, by their index.
    """

    root: Path
    codebase_version: str
    fps: float
    features: Mapping[str, Feature]
    cameras: Mapping[str, Camera]
    episodes: tuple[EpisodeInfo, ...]
    tasks: Mapping[int, str]
    metadata_files: tuple[Path, ...]
    modality: Modality = field(default_factory=Modality)
    task_column: str = TASK_INDEX
    skipped: Mapping[int, int] = field(default_factory=dict)

    def choose_cameras(self, names: Sequence[str] | None) -> tuple[Camera, ...]:
        """Return the cameras called `names`, in that order; all for None.

        Raises:
            DatasetError: A name is unknown or given twice, or a camera's images are not 8-bit RGB.
        """
        if names is None:
            names = tuple(self.cameras)
        for name in names:
            if name not in self.cameras:
                known = ", ".join(f"`{camera}`" for camera in self.cameras) or "none"
                hint = did_you_mean(name, self.cameras, "choose among them")
                raise DatasetError(f"{self.root} has no camera `{name}`, only {known}; {hint}")
        if len(set(names)) < len(names):
            raise DatasetError(f"duplicate camera: {', '.join(names)}; name each one once")
        for name in names:
            if reason := self.cameras[name].unreadable:
                raise DatasetError(
                    f"camera `{name}` of {self.root} {reason}; {RGB_ONLY}; choose other cameras"
                )
        return tuple(self.cameras[name] for name in names)

    def choose_episodes(self, indices: Sequence[int] | None) -> tuple[EpisodeInfo, ...]:
        """Return the episodes with these indices, in ascending order and without skipped frames; all for None.

        Raises:
            DatasetError: An index is unknown or given twice, or none is given.
        """
        if indices is None:
            return tuple(map(self._trimmed, self.episodes)) if self.skipped else self.episodes
        if not len(indices):
            raise DatasetError(f"no episode of {self.root} is chosen; choose at least one")
        chosen = sorted(int(index) for index in indices)
        if len(set(chosen)) < len(chosen):
            raise DatasetError(f"duplicate episode of {self.root}: {chosen}; name each one once")
        known = {episode.index: episode for episode in self.episodes}
        unknown = [index for index in chosen if index not in known]
        if unknown:
            raise DatasetError(
                f"{self.root} has no episode {', '.join(map(str, unknown[:5]))}; choose among its {len(known)} episodes, "
                f"{self.episodes[0].index} to {self.episodes[-1].index}"
            )
        return tuple(self._trimmed(known[index]) for index in chosen)

    def _trimmed(self, episode: EpisodeInfo) -> EpisodeInfo:
        frames = self.skipped.get(episode.index, 0)
        return episode.without_start(frames, self.fps) if frames else episode


def _cure(root: Path) -> str:
    """Return what may have been meant by a directory that does not exist."""
    if meant := near(root.name, names_in(root.parent)):
        return f"did you mean `{root.parent / meant}`?"
    hub = (
        "" if root.parent.is_dir() else f", or write `hf://{root.parent.name}/{root.name}` for one of the hub"
    )
    return f"check the path, which is relative to {Path.cwd()}{hub}"


def read_layout(path: str | Path, columns: Columns | None = None) -> Layout:
    """Read the metadata of the dataset in the directory `path`, with its columns mapped by `columns`.

    Raises:
        DatasetError: The directory or a metadata file is missing, damaged, of an unknown format version, or
            contradicts another one, or `columns` does not fit the dataset.
    """
    root = expanded(path)
    try:
        is_directory = root.is_dir()
    except OSError:
        is_directory = False
    if not is_directory:
        raise DatasetError(f"there is no dataset directory {root}; {_cure(root)}")
    info_path = root / "meta/info.json"
    if not os.path.lexists(info_path):
        raise DatasetError(
            f"{root} has no meta/info.json; name the directory of a LeRobot dataset, which contains `meta/`"
        )
    info = read_json(info_path)
    version, fps = info.get("codebase_version"), info.get("fps")
    if not isinstance(version, str) or version not in _READERS:
        raise DatasetError(
            f"{info_path} has the codebase_version {str(version)[:40]!r}, not one of {', '.join(_READERS)}; "
            "convert the dataset with LeRobot's conversion script"
        )
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= _MOST_FPS:
        raise DatasetError(
            f"{info_path} has the fps {fps!r:.40}; use a number above 0 and at most {_MOST_FPS:,}"
        )
    raw = parse_features(info, path=info_path)
    modality = read_modality(root, raw)
    mapping = {**modality.defaults(raw), **(columns or {})}
    features = map_columns(raw, mapping, path=info_path, slices=modality.features)
    cameras = parse_cameras(features, path=info_path)
    with _no_garbage_collection():
        tables = _READERS[version](root, info, cameras)
    _check_totals(root, tables.episodes, info)
    files = (info_path, *tables.files)
    task_column = TASK_INDEX if TASK_INDEX in raw else next(iter(modality.instructions), TASK_INDEX)
    return Layout(
        root,
        version,
        float(fps),
        features,
        cameras,
        tables.episodes,
        tables.tasks,
        files,
        modality,
        task_column,
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector, which would search all of memory several times per thousand episodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_totals(root: Path, episodes: Sequence[EpisodeInfo], info: Mapping[str, object]) -> None:
    info_path = root / "meta/info.json"
    if not episodes:
        raise DatasetError(f"{root} has no episodes; record or download some")
    (twice, count), *_ = Counter(episode.index for episode in episodes).most_common(1)
    if count > 1:
        raise DatasetError(f"the episode tables in {root / 'meta'} contain episode {twice} twice; remove one")
    found = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    for name, count in found.items():
        if info.get(name, count) != count:
            raise DatasetError(
                f"{info_path} has {name} = {str(info[name])[:40]}, but the episode table adds up to {count}; the metadata "
                "belongs to another version of the dataset, so download or convert it again"
            )
