"""Check of a camera's files before a run: all exist, and some are decoded in part.

The cost does not grow with the dataset, except for the size of each file. `FILES` of a camera are opened,
including those with the fewest bytes per frame, which may be truncated. The first and the last frame of a
video are decoded, and as many images of parquet files as `PIXELS` allows.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

from ....schemas.errors import DatasetError
from ..lerobot.features import Camera, Storage
from ..lerobot.files import require_file
from ..lerobot.layout import EpisodeInfo, Layout
from .decoding import FrameSource, check_size, decode_image, image_cells, open_video
from .store import frame_sources

FILES = 48
PIXELS = 50_000_000
_POINTER = 1_024
"""Size in bytes below which a file may be a pointer to its content."""


def probe_cameras(
    layout: Layout, cameras: Sequence[Camera], episodes: Sequence[EpisodeInfo], *, files: int | None = FILES
) -> None:
    """Check as many `files` of each of the `cameras` for `episodes`, or all if that is None.

    Raises:
        DatasetError: A file is missing, empty or damaged, differs from the metadata in the size of its
            images, or ends before its last row.
    """
    for camera in cameras:
        sources = frame_sources(layout, camera, episodes)
        sizes = {path: _size(path) for path in sources}
        most = len(sources) if files is None else files
        thin = heapq.nsmallest(most // 2, sizes, key=lambda path: sizes[path] / sources[path].frames)
        chosen = dict.fromkeys([*thin, *_spaced(list(sources), most)])
        some = [sources[path] for path in list(chosen)[:most]]
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
            check_size(source, frame.height, frame.width)
            begin = frame.time
            break
        if begin is None:
            raise DatasetError(
                f"{source.path} has no frames; it is probably truncated, so download or copy it again"
            )
        last = begin + (source.frames - 1) / fps
        container.seek(max(int(last / stream.time_base), 0), stream=stream, backward=True)
        for frame in container.decode(stream):
            end = frame.time
            if end is not None and end > last - 0.5 / fps:
                return
    shown = "end before" if end is None else f"end at {end - begin:.3f} s"
    raise DatasetError(
        f"{source.path} ends too early: its {source.frames} rows reach {last - begin:.3f} s at the {fps:g} fps of "
        f"meta/info.json, but its frames {shown}; it is truncated or has another frame rate, so download or convert the "
        "dataset again"
    )


def _probe_images(source: FrameSource, pixels: int) -> None:
    left = max(pixels // (source.height * source.width), 1)
    for row, data in image_cells(source):
        if row >= left:
            return
        decode_image(source, data, row)
