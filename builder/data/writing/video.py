"""Deterministic encoding of uint8 images as H.264.

A keyframe at every second image makes random access cheap. A single thread makes the output independent of
the number of cores, and without B-frames images are stored in the order of time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ....schemas.errors import DatasetError
from .parquet import FileNumbers

VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CODEC = "h264"
PIXEL_FORMAT = "yuv420p"
KEYFRAME_EVERY = 2
QUALITY = 23
"""Constant rate factor of x264: 0 is lossless, 51 is worst."""


class VideoFile:
    """Writer of one mp4.

    Raises:
        DatasetError: Height or width is odd, which yuv420p does not support.
    """

    def __init__(self, path: Path, *, fps: int, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise DatasetError(
                f"a video of {height} x {width} pixels (height x width) cannot be encoded; use an even height and width"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames, self._fps = path, 0, fps
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=fps)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, PIXEL_FORMAT
        self._stream.codec_context.time_base = Fraction(1, fps)
        self._stream.codec_context.thread_count = 1
        self._stream.options = {
            "g": str(KEYFRAME_EVERY),
            "crf": str(QUALITY),
            "preset": "medium",
            "bf": "0",
            "sc_threshold": "0",
        }

    def add(self, images: Iterable[NDArray[np.uint8]]) -> None:
        """Append T images (3, H, W)."""
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            frame.pts, frame.time_base = self.frames, Fraction(1, self._fps)
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    @property
    def size(self) -> int:
        """Bytes on disk; the last images may still be in memory."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


class VideoFiles:
    """Writer of a camera's images to numbered mp4 files of about `limit` bytes, with whole episodes.

    `key` is the feature of the camera; `height` and `width` are in pixels.
    """

    def __init__(self, root: Path, key: str, *, fps: int, height: int, width: int, limit: int) -> None:
        self._root, self._key, self._limit = root, key, limit
        self._fps, self._height, self._width = fps, height, width
        self._files = FileNumbers()
        self._file: VideoFile | None = None

    def copy(self, path: Path) -> dict[str, int]:
        """Copy a whole video, and return the numbers of its file."""
        self.close()
        numbers = self._files.next()
        target = self._root / VIDEO_PATH.format(video_key=self._key, **numbers)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return numbers

    def add(self, images: Iterable[NDArray[np.uint8]]) -> dict[str, Any]:
        """Append an episode of T images (3, H, W), and return the columns that locate it, with times in seconds."""
        if self._file is not None and self._file.size > self._limit:
            self.close()
        if self._file is None:
            path = self._root / VIDEO_PATH.format(video_key=self._key, **self._files.next())
            self._file = VideoFile(path, fps=self._fps, height=self._height, width=self._width)
        start = self._file.frames
        self._file.add(images)
        place = {
            **self._files.current,
            "from_timestamp": start / self._fps,
            "to_timestamp": self._file.frames / self._fps,
        }
        return {f"videos/{self._key}/{name}": value for name, value in place.items()}

    def close(self) -> None:
        """Finish the current file, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None
