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
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ....schemas.errors import DatasetError
from ..lerobot.features import Storage
from .cache import cache_frames, writable_root
from .choice import FrameChoice
from .decoding import FrameSource
from .index import video_index
from .stored import Decoded, FrameFile, Packed
from .streaming import StreamedImages, StreamedVideo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from ..lerobot.features import Camera
    from ..lerobot.layout import EpisodeInfo, Layout
    from .room import Lease


_logger = logging.getLogger(__name__)
ReadableFrames = FrameFile | StreamedVideo | StreamedImages
_SURPLUS = 5
"""Number of frames allowed after the last row."""
_OFFSET, _DRIFT = 0.25, 0.1
"""Tolerance, in frames, of the time of an episode's first frame, and of later frames relative to it."""


class FrameStore:
    """Map from rows of an episode table to frames; can be pickled, and read by several threads."""

    def __init__(
        self,
        files: Sequence[ReadableFrames],
        *,
        file_of: npt.NDArray[np.int64],
        frame_of: npt.NDArray[np.int64],
        lease: Lease | None = None,
    ) -> None:
        """Map each row to a position in `files` (`file_of`, (N,)) and a frame of that file (`frame_of`, (N,))."""
        self._files, self._file_of, self._frame_of = tuple(files), file_of, frame_of
        self._lease = lease
        self.height, self.width = self._files[0].height, self._files[0].width
        weakref.finalize(self, _close, self._files)

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Copy the frames of `rows` (T,) into a new uint8 array (T, 3, H, W).

        Raises:
            DatasetError: A video is damaged, or the cache was removed or truncated since the dataset was
                opened.
        """
        out = np.empty((len(rows), 3, self.height, self.width), dtype=np.uint8)
        for position, row in enumerate(rows):
            self._files[self._file_of[row]].read_into(int(self._frame_of[row]), out[position])
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lease": None}


def _close(files: Sequence[ReadableFrames]) -> None:
    for file in files:
        file.close()


@dataclass(frozen=True, slots=True)
class _Span:
    """Start of an episode's frames in `path`: frame `first_row` (images) or `seconds` (video)."""

    path: Path
    first_row: int
    seconds: float


def open_cameras(
    layout: Layout,
    cameras: Sequence[Camera],
    episodes: Sequence[EpisodeInfo],
    choice: FrameChoice | None = None,
) -> dict[str, FrameStore]:
    """Open the frames of `cameras` in `episodes` in the chosen form, and return a store per camera.

    Raises:
        DatasetError: A video is missing or damaged, its frames do not match the rows of the episodes, or the
            cache lacks space.
    """
    if not cameras:
        return {}
    sources = {camera.name: frame_sources(layout, camera, episodes) for camera in cameras}
    listed = [(name, source) for name, found in sources.items() for source in found.values()]
    choice = choice or FrameChoice()
    form = choice.decide(listed)
    opened: Sequence[ReadableFrames]
    if form == "stream":
        opened, lease = _streamed([source for _, source in listed])
    else:
        shrinks = choice.shrinks if form == "resized" else {}
        forms = [Decoded(shrinks.get(name)) for name, _ in listed]
        opened, lease = cache_frames([source for _, source in listed], forms)
    files: dict[str, dict[Path, ReadableFrames]] = {camera.name: {} for camera in cameras}
    for (name, source), file in zip(listed, opened, strict=True):
        files[name][source.path] = file
    stores = {camera.name: _align(layout, camera, episodes, files[camera.name], lease) for camera in cameras}
    for camera in cameras:
        _check_surplus(camera, files[camera.name], sources[camera.name])
    return stores


def _streamed(sources: Sequence[FrameSource]) -> tuple[list[ReadableFrames], Lease]:
    """Index the videos, and pack the images of parquet files."""
    root = writable_root()
    images = [source for source in sources if source.storage is Storage.IMAGE]
    files, lease = cache_frames(images, [Packed()] * len(images))
    packed = {(source.path, source.column): file for source, file in zip(images, files, strict=True)}
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        indexes = pool.map(
            lambda source: video_index(source, root) if source.storage is Storage.VIDEO else None, sources
        )
        streams: list[ReadableFrames] = [
            StreamedImages(packed[source.path, source.column], source)
            if index is None
            else StreamedVideo(source.path, index, source.height, source.width)
            for source, index in zip(sources, indexes, strict=True)
        ]
    return streams, lease


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


def check_surplus(path: Path, found: int, expected: int) -> None:
    """Raise DatasetError for a file with more frames than some recorders leave at the end."""
    if found - expected > _SURPLUS:
        raise _frame_count(path, found, expected)


def _check_surplus(
    camera: Camera, files: Mapping[Path, ReadableFrames], sources: Mapping[Path, FrameSource]
) -> None:
    for path, file in files.items():
        check_surplus(path, file.frames, sources[path].frames)
    spare = {path: more for path, file in files.items() if (more := file.frames - sources[path].frames) > 0}
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
    layout: Layout,
    camera: Camera,
    episodes: Sequence[EpisodeInfo],
    files: Mapping[Path, ReadableFrames],
    lease: Lease,
) -> FrameStore:
    number = {path: position for position, path in enumerate(files)}
    filmed = camera.storage is Storage.VIDEO
    times = {path: file.timestamps() for path, file in files.items()} if filmed else {}
    file_of, frame_of = [], []
    for episode in episodes:
        span = _span(camera, episode)
        if filmed:
            first = align_episode(camera, episode, times[span.path], layout.fps)
        elif (end := (first := span.first_row) + episode.length) > files[span.path].frames:
            raise _frame_count(span.path, files[span.path].frames, end)
        file_of.append(np.full(episode.length, number[span.path], dtype=np.int64))
        frame_of.append(np.arange(first, first + episode.length, dtype=np.int64))
    return FrameStore(
        list(files.values()),
        file_of=np.concatenate(file_of),
        frame_of=np.concatenate(frame_of),
        lease=lease,
    )


def align_episode(camera: Camera, episode: EpisodeInfo, times: npt.NDArray[np.float64], fps: float) -> int:
    """Return the first frame of an episode in a video whose frames are shown at `times`, in seconds.

    Raises:
        DatasetError: The times do not match those of the rows, or the video ends too early.
    """
    span = _span(camera, episode)
    first = _first_frame(times, span, episode, fps)
    if (end := first + episode.length) > len(times):
        raise _frame_count(span.path, len(times), end)
    return first


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
