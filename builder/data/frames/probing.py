"""A look at a camera's files before a run: all are there, and some of them are opened and decoded in part.

The cost is bounded whatever the size of the dataset. Every file is asked for its size; `FILES` of a camera are opened,
those with the fewest bytes a frame among them, as a truncated file has. Of a video the first and the last frame are
decoded, of images in parquet files as many as `PIXELS` allow.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from ....schemas.errors import DatasetError
from ..lerobot.features import Camera, Storage
from ..lerobot.files import require_file
from ..lerobot.layout import EpisodeInfo, Layout
from .decoding import FrameSource, decode_image, image_cells, image_sized, open_video
from .store import frame_sources

FILES = 48
PIXELS = 50_000_000
_POINTER = 1_024
"""Bytes under which a file is looked into, as it may be a pointer to another."""


def probe_cameras(layout: Layout, cameras: Sequence[Camera], episodes: Sequence[EpisodeInfo]) -> None:
    """Look at the files of `cameras` for `episodes`.

    Raises:
        DatasetError: a file is missing, empty or damaged, holds images of another size than the metadata says, or
            ends before the rows that it belongs to.
    """
    for camera in cameras:
        sources = frame_sources(layout, camera, episodes)
        sizes = {path: _size(path) for path in sources}
        thin = heapq.nsmallest(FILES // 2, sizes, key=lambda path: sizes[path] / sources[path].frames)
        chosen = dict.fromkeys([*thin, *_spaced(list(sources), FILES)])
        some = [sources[path] for path in list(chosen)[:FILES]]
        for source in some:
            if camera.storage is Storage.VIDEO:
                _probe_video(source, layout.fps)
            else:
                _probe_images(source, PIXELS // len(some))


def _size(path: Path) -> int:
    size = path.stat().st_size
    if size < _POINTER or not path.is_file():
        require_file(path)
    return size


def _spaced(paths: list[Path], count: int) -> list[Path]:
    if len(paths) <= count:
        return paths
    return [paths[i * (len(paths) - 1) // (count - 1)] for i in range(count)]


def _probe_video(source: FrameSource, fps: float) -> None:
    with open_video(source.path) as (container, stream):
        begin = end = None
        for frame in container.decode(stream):
            image_sized(source, frame.height, frame.width)
            begin = frame.time
            break
        if begin is None:
            raise DatasetError(
                f"{source.path} holds no frames. It is probably truncated: download or copy it again"
            )
        last = begin + (source.frames - 1) / fps
        container.seek(max(int(last / stream.time_base), 0), stream=stream, backward=True)
        for frame in container.decode(stream):
            end = frame.time
            if end is not None and end > last - 0.5 / fps:
                return
    shown = "none later" if end is None else f"the last at {end - begin:.3f} s"
    raise DatasetError(
        f"{source.path} ends too soon: its {source.frames} rows reach to {last - begin:.3f} s at the {fps:g} fps of "
        f"meta/info.json, but of its frames {shown} is shown. It is truncated, or has another frame rate: download or "
        "convert the dataset again"
    )


def _probe_images(source: FrameSource, pixels: int) -> None:
    left = max(pixels // (source.height * source.width), 1)
    for row, data in image_cells(source):
        if row >= left:
            return
        decode_image(source, data, row)
