"""Faults of a dataset's files: every one of them, each with the episodes that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ....schemas.errors import DatasetError
from ..frames.cache import writable_root
from ..frames.decoding import FrameSource, decode_image, image_cells
from ..frames.index import video_index
from ..frames.store import align_episode, check_surplus, frame_sources
from ..frames.streaming import StreamedVideo
from ..lerobot.features import ACTION, Camera, Storage
from ..lerobot.layout import EpisodeInfo, Layout
from ..lerobot.table import read_table
from ..statistics import unusable
from .findings import Finding, Severity

_MOST = 200
"""Number of faults after which the examination stops."""
_THREADS = 4


def reading_faults(
    layout: Layout,
    episodes: Sequence[EpisodeInfo],
    cameras: Sequence[Camera],
    vectors: Collection[str] | None = None,
    *,
    frames: int | None = 3,
) -> list[Finding]:
    """Return the faults of the files of `episodes`.

    Args:
        layout: Metadata of the dataset.
        episodes: Episodes to examine.
        cameras: Cameras to examine.
        vectors: Numeric observations to examine; None for all.
        frames: Number of frames to decode of each video; None for all. Times of frames are always compared.
    """
    found = list(_numeric_faults(layout, episodes, vectors))
    for camera in cameras:
        found += _camera_faults(layout, camera, episodes, frames)
    return found


def readable(
    layout: Layout,
    episodes: Sequence[int],
    cameras: Sequence[str],
    vectors: Collection[str] | None = None,
) -> tuple[tuple[int, ...], list[Finding]]:
    """Return the episodes without faults, and the faults of the others; cameras are named as in the dataset."""
    chosen = layout.choose_episodes(episodes)
    found = reading_faults(layout, chosen, layout.choose_cameras(cameras), vectors)
    faulty = {index for finding in found for index in finding.episodes}
    return tuple(index for index in episodes if index not in faulty), found


def _numeric_faults(
    layout: Layout, episodes: Sequence[EpisodeInfo], vectors: Collection[str] | None
) -> Iterator[Finding]:
    def check(some: Sequence[EpisodeInfo]) -> None:
        table = read_table(layout, some, vectors)
        if ACTION in (bad := unusable(table)):
            raise DatasetError(f"{bad[ACTION]}; repair the episode, or leave it out")

    for number, (some, error) in enumerate(_narrowed(episodes, check)):
        if number == _MOST:
            return
        yield Finding(Severity.ERROR, "rows", error, tuple(episode.index for episode in some))


def _narrowed(
    episodes: Sequence[EpisodeInfo], check: Callable[[Sequence[EpisodeInfo]], None]
) -> Iterator[tuple[Sequence[EpisodeInfo], str]]:
    """Yield single episodes that fail a check, with the error; all at once if none is to blame alone."""
    try:
        check(episodes)
    except DatasetError as error:
        if len(episodes) == 1:
            yield episodes, str(error)
            return
        half, alone = len(episodes) // 2, False
        for part in (episodes[:half], episodes[half:]):
            for found in _narrowed(part, check):
                alone = True
                yield found
        if not alone:
            yield episodes, str(error)


def _camera_faults(
    layout: Layout, camera: Camera, episodes: Sequence[EpisodeInfo], frames: int | None
) -> list[Finding]:
    found: list[Finding] = []
    sources: dict[Path, FrameSource] = {}
    of_file: dict[Path, list[EpisodeInfo]] = {}
    for part, error in _narrowed(episodes, lambda some: _locate(layout, camera, some, sources, of_file)):
        found.append(_of_camera(camera, error, part))
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [(layout, camera, sources[path], some, frames) for path, some in of_file.items()]
        for faults in pool.map(lambda job: _file_faults(*job), jobs):
            found += faults
    return found


def _locate(
    layout: Layout,
    camera: Camera,
    episodes: Sequence[EpisodeInfo],
    sources: dict[Path, FrameSource],
    of_file: dict[Path, list[EpisodeInfo]],
) -> None:
    """Find the files of episodes, or raise DatasetError for a missing one."""
    new = frame_sources(layout, camera, episodes)
    sources |= new
    for episode in episodes:
        path = episode.data_file if camera.storage is Storage.IMAGE else episode.videos[camera.name].path
        if episode not in (known := of_file.setdefault(path, [])):
            known.append(episode)


def _file_faults(
    layout: Layout, camera: Camera, source: FrameSource, episodes: Sequence[EpisodeInfo], frames: int | None
) -> list[Finding]:
    try:
        if camera.storage is Storage.IMAGE:
            _check_images(source, frames)
            return []
        index = video_index(source, writable_root())
    except DatasetError as error:
        return [_of_camera(camera, str(error), episodes)]
    found = []
    times = index.timestamps()
    for episode in episodes:
        try:
            align_episode(camera, episode, times, layout.fps)
        except DatasetError as error:
            found.append(_of_camera(camera, str(error), [episode]))
    if not found:
        try:
            check_surplus(source.path, index.frames, source.frames)
        except DatasetError as error:
            found.append(_of_camera(camera, str(error), episodes))
    video = StreamedVideo(source.path, index, source.height, source.width)
    every = range(index.frames)
    some = every if frames is None else np.linspace(0, index.frames - 1, frames).astype(int).tolist()
    out = np.empty((3, source.height, source.width), dtype=np.uint8)
    try:
        for frame in dict.fromkeys(some):
            video.read_into(frame, out)
    except DatasetError as error:
        found.append(_of_camera(camera, str(error), episodes))
    finally:
        video.close()
    return found


def _check_images(source: FrameSource, frames: int | None) -> None:
    for row, data in image_cells(source):
        if frames is None or row < frames:
            decode_image(source, data, row)


def _of_camera(camera: Camera, error: str, episodes: Sequence[EpisodeInfo]) -> Finding:
    concerned = tuple(episode.index for episode in episodes)
    return Finding(Severity.ERROR, "frames", f"camera `{camera.name}`: {error}", concerned)
