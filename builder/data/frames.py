"""The frames of one camera for chosen episodes, aligned with the rows of their table.

    stores = open_cameras(layout, layout.choose_cameras(["top"]), layout.episodes)
    stores["top"].read([0, 1])      # uint8 (2, 3, H, W)

In v2.x the frame number within the episode's own mp4 is the row number. In v3.0 an episode begins at a time:
the frame shown then is looked up among the frames' real times, so that an uneven video is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...schemas.errors import DatasetError
from .cache import cache_frames
from .decoding import FrameSource
from .features import Storage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from .cache import FrameFile, FrameReader
    from .features import Camera
    from .layout import EpisodeInfo, Layout


class FrameStore:
    """Maps row numbers of an episode table to decoded frames. Can be pickled; files are opened on first use."""

    def __init__(
        self, files: Sequence[FrameFile], *, file_of: npt.NDArray[np.int64], frame_of: npt.NDArray[np.int64]
    ) -> None:
        """`file_of` and `frame_of` (N,) give, for each row, the position in `files` and the frame within it."""
        self._files, self._file_of, self._frame_of = tuple(files), file_of, frame_of
        self._readers: list[FrameReader | None] = [None] * len(self._files)
        self.height, self.width = self._files[0].height, self._files[0].width

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Copy the frames of `rows` (T,) into a new uint8 array (T, 3, H, W).

        Raises:
            DatasetError: the cache was removed or cut since the dataset was opened.
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
    """An episode's frames begin at frame `first_row` (images) or at `seconds` (video) of `path`."""

    path: Path
    first_row: int
    seconds: float


def open_cameras(
    layout: Layout, cameras: Sequence[Camera], episodes: Sequence[EpisodeInfo]
) -> dict[str, FrameStore]:
    """Decode (or find in the cache) what `cameras` saw in `episodes`; returns one store a camera, by its name.

    Raises:
        DatasetError: a video is missing or damaged, its frames do not match the episodes' rows, or the cache
            has no room.
    """
    sources: dict[tuple[str, Path], FrameSource] = {}
    for camera in cameras:
        _check_present(camera, episodes)
        expected = _expected_frames(layout, camera)
        column = camera.key if camera.storage is Storage.IMAGE else ""
        for episode in episodes:
            path = _span(camera, episode).path
            sources[camera.name, path] = FrameSource(
                path, camera.storage, column, expected[path], camera.height, camera.width
            )
    files = dict(zip(sources, cache_frames(list(sources.values())) if sources else (), strict=True))
    for key, file in files.items():
        if file.frames != sources[key].frames:
            raise DatasetError(
                f"{file.source} has {file.frames} frames, but the metadata gives it {sources[key].frames} rows. "
                "The video is truncated or belongs to another version: download or convert the dataset again"
            )
    return {
        camera.name: _align(
            layout, camera, episodes, {path: files[name, path] for name, path in files if name == camera.name}
        )
        for camera in cameras
    }


def _align(
    layout: Layout, camera: Camera, episodes: Sequence[EpisodeInfo], files: Mapping[Path, FrameFile]
) -> FrameStore:
    number = {path: position for position, path in enumerate(files)}
    by_time = camera.storage is Storage.VIDEO and layout.codebase_version == "v3.0"
    times = {path: file.timestamps() for path, file in files.items()} if by_time else {}
    file_of, frame_of = [], []
    for episode in episodes:
        span = _span(camera, episode)
        first = _first_frame(times[span.path], span, episode, layout.fps) if by_time else span.first_row
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
    absent = [(index, path) for index, path in places if not path.exists()]
    if absent:
        if len(absent) == len(episodes):
            extent, cure = "any of", "leave this camera out"
        else:
            shown = ", ".join(str(index) for index, _ in absent[:8]) + (", ..." if len(absent) > 8 else "")
            extent, cure = f"{len(absent)} ({shown}) of", "choose the other episodes"
        raise DatasetError(
            f"{absent[0][1]} is missing: camera `{camera.name}` has no video for {extent} the {len(episodes)} chosen "
            f"episodes. Download the files, or {cure}"
        )


def _expected_frames(layout: Layout, camera: Camera) -> dict[Path, int]:
    """The frames that each file must have: up to the end of the last episode in it."""
    expected: dict[Path, int] = {}
    for episode in layout.episodes:
        span = _span(camera, episode)
        end = span.first_row + round(span.seconds * layout.fps) + episode.length
        expected[span.path] = max(expected.get(span.path, 0), end)
    return expected


def _first_frame(times: npt.NDArray[np.float64], span: _Span, episode: EpisodeInfo, fps: float) -> int:
    """The frame shown at the episode's begin; the one shown at its end must fit as well."""
    after = int(np.searchsorted(times, span.seconds))
    first = min(
        (max(after - 1, 0), min(after, len(times) - 1)), key=lambda frame: abs(times[frame] - span.seconds)
    )
    for step in (0, episode.length - 1):
        due = span.seconds + step / fps
        shown = times[first + step] if first + step < len(times) else np.inf
        if abs(shown - due) > 0.5 / fps:
            raise DatasetError(
                f"{span.path}: frame {step} of episode {episode.index} is due at {due:.3f} s, but the video shows it "
                f"at {shown:.3f} s. The video's frame rate is not the {fps:g} of meta/info.json, or frames were "
                "dropped: convert the dataset again"
            )
    return first
