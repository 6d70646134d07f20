"""Index of a video: the time of every frame and the keyframes, read from packets without decoding.

It costs as much as reading the file. It is kept in the frame cache, under the digest of the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import av
import numpy as np

from ....schemas.errors import DatasetError
from .decoding import FrameSource, check_format, check_size, open_video
from .digests import file_digest

if TYPE_CHECKING:
    import numpy.typing as npt

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """Frames of a video in the order of time, N in all.

    Attributes:
        pts: Time of each frame in units of the stream, int64 (N,), ascending.
        keyframes: Number of the keyframe that the decoding of each frame starts from, int64 (N,).
        unit: Seconds of one unit of the stream.
    """

    pts: npt.NDArray[np.int64]
    keyframes: npt.NDArray[np.int64]
    unit: float

    @property
    def frames(self) -> int:
        """Number of frames, N."""
        return len(self.pts)

    def timestamps(self) -> npt.NDArray[np.float64]:
        """Return the seconds since the first frame, float64 (N,)."""
        times: npt.NDArray[np.float64] = (self.pts - self.pts[0]) * self.unit
        return times


def video_index(source: FrameSource, root: Path) -> VideoIndex:
    """Return the index of a video, kept below the cache directory `root`.

    Raises:
        DatasetError: The video is missing, damaged or empty, or its size differs from the metadata.
    """
    digest = file_digest(source.path, memory=root / "digests")
    key = hashlib.sha256(f"{_FORMAT} {digest} {av.__version__}".encode()).hexdigest()[:32]
    path = root / "indexes" / f"{key}.npz"
    try:
        with np.load(path) as held:
            height, width = held["size"].tolist()
            index = VideoIndex(held["pts"], held["keyframes"], float(held["unit"]))
    except (OSError, ValueError, KeyError, EOFError):
        index, (height, width) = read_index(source)
        _keep(path, index, (height, width))
    check_size(source, height, width, "the video")
    return index


def read_index(source: FrameSource) -> tuple[VideoIndex, tuple[int, int]]:
    """Read the index of a video from its packets, and its height and width.

    Raises:
        DatasetError: The video is missing, damaged or empty, or its size differs from the metadata.
    """
    pts: list[int] = []
    keys: list[int] = []
    with open_video(source.path) as (container, stream):
        context = stream.codec_context
        size = int(context.height), int(context.width)
        check_size(source, *size, "the video")
        if context.pix_fmt is not None:
            check_format(source.path, context.format)
        unit = float(stream.time_base)
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                pts.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                if len(pts) > source.most_frames:
                    raise source.endless(len(pts))
    if not pts or not keys:
        raise DatasetError(
            f"{source.path} has no frames; it is probably truncated, so download or copy it again"
        )
    times = np.unique(np.asarray(pts, dtype=np.int64))
    starts = np.searchsorted(times, np.sort(np.asarray(keys, dtype=np.int64)))
    before = np.searchsorted(starts, np.arange(len(times)), side="right") - 1
    keyframes = starts[np.maximum(before, 0)].astype(np.int64)
    return VideoIndex(times, keyframes, unit), size


def _keep(path: Path, index: VideoIndex, size: tuple[int, int]) -> None:
    """Write an index atomically; a failure only costs time."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(
                file,
                pts=index.pts,
                keyframes=index.keyframes,
                unit=np.asarray(index.unit),
                size=np.asarray(size),
            )
        Path(file.name).replace(path)
    except OSError:
        return
