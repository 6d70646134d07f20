"""Frames of a camera for chosen episodes, aligned with the rows of their table.

    stores = open_cameras(layout, layout.choose_cameras(["top"]), layout.episodes)
    stores["top"].read([0, 1])      # uint8 (2, 3, H, W)

In v2.x an episode has its own mp4; in v3.0 it begins at a time stamp of a shared one. Its first frame is
found by the actual times of the frames, and the time of every later frame must match its row, so that uneven
videos and other frame rates are detected. Surplus frames at the end, which some recorders leave, are ignored.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ....schemas.errors import DatasetError
from ..lerobot.features import Storage
from .cache import cache_frames
from .decoding import FrameSource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from ..lerobot.features import Camera
    from ..lerobot.layout import EpisodeInfo, Layout
    from .cache import FrameFile, FrameReader


_logger = logging.getLogger(__name__)
_SURPLUS = 5
"""Number of frames allowed after the last row."""
_OFFSET, _DRIFT = 0.25, 0.1
"""Tolerance, in frames, of the time of an episode's first frame, and of later frames relative to it."""


class FrameStore:
    """Map from rows of an episode table to decoded frames; can be pickled, opens files on first use."""

    def __init__(
        self, files: Sequence[FrameFile], *, file_of: npt.NDArray[np.int64], frame_of: npt.NDArray[np.int64]
    ) -> None:
        """Map each row to a position in `files` (`file_of`, (N,)) and a frame of that file (`frame_of`, (N,))."""
        self._files, self._file_of, self._frame_of = tuple(files), file_of, frame_of
        self._readers: list[FrameReader | None] = [None] * len(self._files)
        self.height, self.width = self._files[0].height, self._files[0].width

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Copy the frames of `rows` (T,) into a new uint8 array (T, 3, H, W).

        Raises:
            DatasetError: The cache was removed or truncated since the dataset was opened.
        """
        out = np.empty((len(rows), 3, self.height, self.width), dtype=np.uint8)
        for position, row in enumerate(rows):
            number = self._file_of[row]
            reader = self._readers[number]
            if reader is None:
                reader = self._readers[number] = self._files[number].open()
            reader.read_into(int(self._frame_of[row]), out[position])
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [None] * len(self._files)}


@dataclass(frozen=True, slots=True)
class _Span:
    """Start of an episode's frames in `path`: frame `first_row` (images) or `seconds` (video)."""

    path: Path
    first_row: int
    seconds: float


def open_cameras(
    layout: Layout, cameras: Sequence[Camera], episodes: Sequence[EpisodeInfo]
) -> dict[str, FrameStore]:
    """Decode the frames of `cameras` in `episodes`, unless cached, and return a store per camera.

    Raises:
        DatasetError: A video is missing or damaged, its frames do not match the rows of the episodes, or the
            cache lacks space.
    """
    sources: dict[tuple[str, Path], FrameSource] = {}
    for camera in cameras:
        found = frame_sources(layout, camera, episodes)
        sources |= {(camera.name, path): source for path, source in found.items()}
    files = dict(zip(sources, cache_frames(list(sources.values())) if sources else (), strict=True))
    stores = {
        camera.name: _align(
            layout, camera, episodes, {path: files[name, path] for name, path in files if name == camera.name}
        )
        for camera in cameras
    }
    for camera in cameras:
        _check_surplus(camera, {p: (files[n, p], sources[n, p]) for n, p in files if n == camera.name})
    return stores


def frame_sources(layout: Layout, camera: Camera, episodes: Sequence[EpisodeInfo]) -> dict[Path, FrameSource]:
    """Return the files of a camera for `episodes`, or raise DatasetError if some are missing."""
    _check_present(camera, episodes)
    expected = _expected_frames(layout, camera)
    column = camera.key if camera.storage is Storage.IMAGE else ""
    paths = dict.fromkeys(_span(camera, episode).path for episode in episodes)
    return {
        path: FrameSource(path, camera.storage, column, expected[path], camera.height, camera.width)
        for path in paths
    }


def _check_surplus(camera: Camera, files: Mapping[Path, tuple[FrameFile, FrameSource]]) -> None:
    spare = {path: file.frames - source.frames for path, (file, source) in files.items()}
    for path, count in spare.items():
        if count > _SURPLUS:
            file, source = files[path]
            raise _frame_count(path, file.frames, source.frames)
    spare = {path: count for path, count in spare.items() if count > 0}
    if spare:
        path, count = next(iter(spare.items()))
        _logger.warning(
            "camera `%s`: %d of %d videos have more frames than rows, such as %s with %d more; those at the end are ignored",
            camera.name,
            len(spare),
            len(files),
            path,
            count,
        )


def _frame_count(path: Path, found: int, expected: int) -> DatasetError:
    if found < expected:
        cause = "the video is truncated or belongs to another version"
    else:
        cause = "the video belongs to another version, or rows are missing"
    return DatasetError(
        f"{path} has {found} frames, but the metadata expects {expected}; {cause}, so download or convert the "
        "dataset again"
    )


def _align(
    layout: Layout, camera: Camera, episodes: Sequence[EpisodeInfo], files: Mapping[Path, FrameFile]
) -> FrameStore:
    number = {path: position for position, path in enumerate(files)}
    filmed = camera.storage is Storage.VIDEO
    times = {path: file.timestamps() for path, file in files.items()} if filmed else {}
    file_of, frame_of = [], []
    for episode in episodes:
        span = _span(camera, episode)
        first = _first_frame(times[span.path], span, episode, layout.fps) if filmed else span.first_row
        if (end := first + episode.length) > files[span.path].frames:
            raise _frame_count(span.path, files[span.path].frames, end)
        file_of.append(np.full(episode.length, number[span.path], dtype=np.int64))
        frame_of.append(np.arange(first, first + episode.length, dtype=np.int64))
    return FrameStore(
        list(files.values()), file_of=np.concatenate(file_of), frame_of=np.concatenate(frame_of)
    )


def _span(camera: Camera, episode: EpisodeInfo) -> _Span:
    if camera.storage is Storage.IMAGE:
        return _Span(episode.data_file, episode.first_row, 0.0)
    video = episode.videos[camera.name]
    return _Span(video.path, 0, video.from_timestamp)


def _check_present(camera: Camera, episodes: Sequence[EpisodeInfo]) -> None:
    places = [(episode.index, _span(camera, episode).path) for episode in episodes]
    missing = {path for path in {path for _, path in places} if not os.path.exists(path)}  # noqa: PTH110  (names that are too long)
    absent = [(index, path) for index, path in places if path in missing]
    if absent:
        if len(absent) == len(episodes):
            extent, cure = "any of", "leave out this camera"
        else:
            shown = ", ".join(str(index) for index, _ in absent[:8]) + (", ..." if len(absent) > 8 else "")
            extent, cure = f"{len(absent)} ({shown}) of", "choose the other episodes"
        raise DatasetError(
            f"{absent[0][1]} is missing: camera `{camera.name}` has no video for {extent} the {len(episodes)} chosen "
            f"episodes; download the files or {cure}"
        )


def _expected_frames(layout: Layout, camera: Camera) -> dict[Path, int]:
    """Return the number of frames that each file must have, up to the end of its last episode."""
    expected: dict[Path, int] = {}
    for episode in layout.episodes:
        span = _span(camera, episode)
        end = span.first_row + round(span.seconds * layout.fps) + episode.length
        expected[span.path] = max(expected.get(span.path, 0), end)
    return expected


def _first_frame(times: npt.NDArray[np.float64], span: _Span, episode: EpisodeInfo, fps: float) -> int:
    """Return the first frame of an episode, or raise DatasetError if the times do not match."""
    after = int(np.searchsorted(times, span.seconds))
    first = min(
        (max(after - 1, 0), min(after, len(times) - 1)), key=lambda frame: abs(times[frame] - span.seconds)
    )
    shown = times[first : first + episode.length]
    due = span.seconds + np.arange(len(shown)) / fps
    off = shown - due
    wrong = np.flatnonzero(np.abs(off - off[0]) > _DRIFT / fps)
    if abs(off[0]) <= _OFFSET / fps and not len(wrong):
        return first
    frame = 0 if abs(off[0]) > _OFFSET / fps else int(wrong[0])
    rate = 1.0 / float(np.median(np.diff(times))) if len(times) > 1 else fps
    if abs(rate - fps) > 0.02 * fps:
        cause = f"the video has {rate:.4g} frames per second, not the {fps:g} of meta/info.json"
    elif frame:
        cause = "frames were dropped, duplicated or recorded unevenly"
    else:
        cause = "the `from_timestamp` of the episode does not match a frame"
    raise DatasetError(
        f"{span.path}: frame {frame} of episode {episode.index} is due at {due[frame]:.3f} s, but the video shows it "
        f"at {shown[frame]:.3f} s ({abs(off[frame]) * fps:.2g} frames off); {cause}, so correct the metadata or convert "
        "the dataset again"
    )
