"""Frames decoded when they are read: single frames of videos, and images kept in their encoded form.

The pixels are those that the frame cache would hold. Decoders stay open, each used by one thread at a time,
and continue from the frame that they are at, unless a keyframe lies in between. A process keeps a bounded
number of them, and the least recently used ones are closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ....schemas.errors import DatasetError
from .decoding import FrameSource, decode_image, open_video
from .index import VideoIndex

if TYPE_CHECKING:
    import numpy.typing as npt

    from .stored import PackedFile

_OPEN_DECODERS = 32


class _VideoDecoder:
    """Open decoder of one video."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self.path, self.index = path, index
        self._opened = open_video(path)
        self._container, self._stream = self._opened.__enter__()
        self._stream.codec_context.thread_count = 1  # threads read other samples, and these would wait
        self._frames: Any = None
        self.next = 0
        """Number of the frame that it decodes next."""

    def continues_to(self, frame: int) -> bool:
        """Return whether it reaches a frame sooner by going on than by a seek."""
        return self._frames is not None and self.index.keyframes[frame] <= self.next <= frame

    def read(self, frame: int) -> npt.NDArray[np.uint8]:
        """Decode a frame, uint8 (H, W, 3). Raise DatasetError if it cannot be decoded."""
        start = int(self.index.keyframes[frame])
        while True:
            if not self.continues_to(frame):
                self._seek(start)
            try:
                found = self._forward_to(frame)
            except StopIteration:
                found = None
            except Exception as error:
                self._frames = None
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise self._fault(frame, f"cannot be decoded ({reason})") from error
            if found is not None:
                return found
            self._frames = None
            if start == 0:
                raise self._fault(frame, "is missing from the video")
            start = int(self.index.keyframes[start - 1])

    def _seek(self, start: int) -> None:
        self._container.seek(int(self.index.pts[start]), stream=self._stream, backward=True)
        self._frames, self.next = iter(self._container.decode(self._stream)), start

    def _forward_to(self, frame: int) -> npt.NDArray[np.uint8] | None:
        """Return a frame, or None if the decoder is already beyond it."""
        due = int(self.index.pts[frame])
        while True:
            decoded = next(self._frames)
            if decoded.pts == due:
                self.next = frame + 1
                return np.asarray(decoded.to_ndarray(format="rgb24"), dtype=np.uint8)
            if decoded.pts is not None and decoded.pts > due:
                return None

    def _fault(self, frame: int, what: str) -> DatasetError:
        seconds = float(self.index.timestamps()[frame])
        return DatasetError(
            f"{self.path}: frame {frame}, at {seconds:.3f} s, {what}; the file is damaged, so download or copy it again"
        )

    def close(self) -> None:
        """Close the file."""
        self._frames = None
        self._opened.__exit__(None, None, None)


class _Decoders:
    """Idle decoders of a process, least recently used first."""

    def __init__(self) -> None:
        self._lock, self._idle = Lock(), list[_VideoDecoder]()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """Set the decoders aside after a fork: they share file positions with the parent.

        Freeing them would wait for threads that the child does not have.
        """
        self._of_parent, self._lock, self._idle = self._idle, Lock(), []

    @contextmanager
    def borrowed(self, video: StreamedVideo, frame: int) -> Iterator[_VideoDecoder]:
        """Borrow a decoder of a video for one thread, preferably one that is just before `frame`."""
        with self._lock:
            fitting = [idle for idle in self._idle if idle.path == video.path]
            fitting.sort(key=lambda idle: idle.continues_to(frame))
            decoder = fitting[-1] if fitting else None
            if decoder is not None:
                self._idle.remove(decoder)
        decoder = decoder or _VideoDecoder(video.path, video.index)
        try:
            yield decoder
        except BaseException:
            decoder.close()
            raise
        with self._lock:
            self._idle.append(decoder)
            spare = [self._idle.pop(0) for _ in range(len(self._idle) - _OPEN_DECODERS)]
        for old in spare:
            old.close()

    def close(self, path: Path) -> None:
        """Close the idle decoders of a video."""
        with self._lock:
            done = [idle for idle in self._idle if idle.path == path]
            self._idle = [idle for idle in self._idle if idle.path != path]
        for decoder in done:
            decoder.close()


_decoders = _Decoders()


@dataclass(frozen=True, slots=True)
class StreamedVideo:
    """Frames of a video, decoded when they are read."""

    path: Path
    index: VideoIndex
    height: int
    width: int

    @property
    def source(self) -> Path:
        """The video."""
        return self.path

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.index.frames

    def timestamps(self) -> npt.NDArray[np.float64]:
        """Return the seconds since the first frame, float64 (N,)."""
        return self.index.timestamps()

    def read_into(self, frame: int, out: npt.NDArray[np.uint8]) -> None:
        """Decode one frame into a uint8 array (3, H, W).

        Raises:
            DatasetError: The frame cannot be decoded.
        """
        with _decoders.borrowed(self, frame) as decoder:
            out[:] = decoder.read(frame).transpose(2, 0, 1)

    def close(self) -> None:
        """Close the decoders that no thread uses."""
        _decoders.close(self.path)


@dataclass(frozen=True, slots=True)
class StreamedImages:
    """Images of a parquet file, kept encoded in the cache and decoded when they are read."""

    packed: PackedFile
    origin: FrameSource

    @property
    def source(self) -> Path:
        """The parquet file."""
        return self.origin.path

    @property
    def frames(self) -> int:
        """Number of images."""
        return self.packed.frames

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.origin.height

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.origin.width

    def timestamps(self) -> npt.NDArray[np.float64]:
        """Return the number of each image, float64 (N,)."""
        return np.arange(self.frames, dtype=np.float64)

    def read_into(self, frame: int, out: npt.NDArray[np.uint8]) -> None:
        """Decode one image into a uint8 array (3, H, W).

        Raises:
            DatasetError: The cache was removed or damaged since the dataset was opened.
        """
        out[:] = decode_image(self.origin, self.packed.read(frame), frame).transpose(2, 0, 1)

    def close(self) -> None:
        """Close the file, if this process holds it open."""
        self.packed.close()
