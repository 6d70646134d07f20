"""Files that the frame cache writes for a source file: raw frames, shrunk frames, or images as they were encoded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from ....schemas.errors import DatasetError
from .decoding import check_size, decode, image_cells
from .digests import plain_digest
from .open_files import open_files

if TYPE_CHECKING:
    import numpy.typing as npt

    from .decoding import FrameSource

FRAMES, TIMES = "frames.u8", "timestamps.npy"
IMAGES, OFFSETS = "images.bin", "offsets.npy"


@dataclass(frozen=True, slots=True)
class Shrink:
    """The change of each frame before it is stored.

    Attributes:
        name: What it does, in words that change with its result.
        size: Height and width of the result.
        apply: Function from a frame, uint8 (H, W, 3), to the stored one, uint8 (3, h, w).
    """

    name: str
    size: tuple[int, int]
    apply: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class FrameFile:
    """Decoded frames of one source file, each of `height` x `width` pixels."""

    directory: Path
    source: Path
    frames: int
    height: int
    width: int

    def read_into(self, frame: int, out: npt.NDArray[np.uint8]) -> None:
        """Copy one frame into a contiguous uint8 array (3, H, W).

        Raises:
            DatasetError: The cache was removed or truncated since the dataset was opened.
        """
        size = 3 * self.height * self.width
        with _explained(self.directory):
            file = open_files.get(self.directory / FRAMES)
            if file.size != self.frames * size:
                raise OSError(f"{file.size} bytes instead of {self.frames * size}")
            file.read_into(out.data.cast("B"), frame * size)

    def close(self) -> None:
        """Close the file, if this process holds it open."""
        open_files.close(self.directory / FRAMES)

    def timestamps(self) -> npt.NDArray[np.float64]:
        """Return the seconds since the first frame, float64 (N,)."""
        times: npt.NDArray[np.float64] = np.load(self.directory / TIMES)
        return times


@dataclass(frozen=True, slots=True)
class PackedFile:
    """Encoded images of one source file, one after the other.

    Attributes:
        offsets: First byte of each image, and the end of the last, int64 (N + 1,).
    """

    directory: Path
    offsets: npt.NDArray[np.int64]

    @property
    def frames(self) -> int:
        """Number of images, N."""
        return len(self.offsets) - 1

    def read(self, frame: int) -> bytes:
        """Return one encoded image.

        Raises:
            DatasetError: The cache was removed or truncated since the dataset was opened.
        """
        start, end = self.offsets[frame : frame + 2].tolist()
        content = bytearray(end - start)
        with _explained(self.directory):
            open_files.get(self.directory / IMAGES).read_into(memoryview(content), start)
        return bytes(content)

    def close(self) -> None:
        """Close the file, if this process holds it open."""
        open_files.close(self.directory / IMAGES)


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"the cached frames in {directory} are missing or damaged ({error.strerror or error}); "
            "start again, and they are rebuilt when the dataset is opened"
        ) from error


class DamagedError(Exception):
    """Raised when the files of an entry do not match its index."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Frames stored decoded, shrunk or in their own size."""

    files: ClassVar[tuple[str, str]] = FRAMES, TIMES
    shrink: Shrink | None = None

    def name(self, source: FrameSource) -> str:
        """Return what distinguishes the entry from others of the same file."""
        return source.decoder if self.shrink is None else f"{source.decoder} {self.shrink.name}"

    def size(self, source: FrameSource) -> tuple[int, int]:
        """Return height and width of the stored frames."""
        return (source.height, source.width) if self.shrink is None else self.shrink.size

    def bytes(self, source: FrameSource) -> int:
        """Return the bytes that the frames take."""
        height, width = self.size(source)
        return source.frames * 3 * height * width

    def write(self, directory: Path, source: FrameSource) -> dict[str, Any]:
        """Decode into a directory, and return the index of the entry."""
        times: list[float] = []
        frames = hashlib.sha256()
        with (directory / FRAMES).open("wb") as file:
            for image, seconds in decode(source):
                stored = image.transpose(2, 0, 1) if self.shrink is None else self.shrink.apply(image)
                frame = np.ascontiguousarray(stored)
                file.write(frame.data)
                frames.update(frame.data)
                times.append(seconds)
            file.flush()
            os.fsync(file.fileno())
        if not times:
            raise DatasetError(
                f"{source.path} has no frames; it is probably truncated, so download or copy it again"
            )
        np.save(directory / TIMES, np.asarray(times, dtype=np.float64))
        height, width = self.size(source)
        return {
            "frames": len(times),
            "height": height,
            "width": width,
            "source_size": [source.height, source.width],
            "sha256": {FRAMES: frames.hexdigest(), TIMES: plain_digest(directory / TIMES)},
        }

    def read(self, directory: Path, index: Mapping[str, Any], source: FrameSource) -> FrameFile:
        """Return the entry, after comparing the sizes of its files with the index.

        Raises:
            DamagedError: They differ.
            DatasetError: The frames have another size than the metadata says.
        """
        count, height, width = int(index["frames"]), int(index["height"]), int(index["width"])
        own_height, own_width = index.get("source_size", (height, width))
        check_size(source, int(own_height), int(own_width), "a frame")
        if (size := (directory / FRAMES).stat().st_size) != count * 3 * height * width:
            raise DamagedError(f"{FRAMES} has {size} bytes instead of {count * 3 * height * width}")
        if (times := np.load(directory / TIMES).shape) != (count,):
            raise DamagedError(f"{TIMES} has the shape {times} for {count} frames")
        return FrameFile(directory, source.path, count, height, width)


@dataclass(frozen=True, slots=True)
class Packed:
    """Images of a parquet file stored as they are encoded, since single rows of parquet are slow to read."""

    files: ClassVar[tuple[str, str]] = IMAGES, OFFSETS

    def name(self, source: FrameSource) -> str:
        """Return what distinguishes the entry from others of the same file."""
        return f"encoded {source.column}"

    def bytes(self, source: FrameSource) -> int:
        """Return the bytes that the images take at most."""
        return source.path.stat().st_size

    def write(self, directory: Path, source: FrameSource) -> dict[str, Any]:
        """Copy the images into a directory, and return the index of the entry."""
        ends = [0]
        with (directory / IMAGES).open("wb") as file:
            for _, data in image_cells(source):
                file.write(data)
                ends.append(ends[-1] + len(data))
            file.flush()
            os.fsync(file.fileno())
        np.save(directory / OFFSETS, np.asarray(ends, dtype=np.int64))
        return {
            "frames": len(ends) - 1,
            "sha256": {name: plain_digest(directory / name) for name in self.files},
        }

    def read(self, directory: Path, index: Mapping[str, Any], source: FrameSource) -> PackedFile:
        """Return the entry. Raise DamagedError if its files differ from the index in size."""
        offsets = np.load(directory / OFFSETS)
        if offsets.shape != (int(index["frames"]) + 1,):
            raise DamagedError(f"{OFFSETS} has the shape {offsets.shape} for {index['frames']} images")
        if (size := (directory / IMAGES).stat().st_size) != offsets[-1]:
            raise DamagedError(f"{IMAGES} has {size} bytes instead of {offsets[-1]}")
        return PackedFile(directory, offsets)


Stored = TypeVar("Stored", bound=FrameFile | PackedFile)
_Kept_co = TypeVar("_Kept_co", bound=FrameFile | PackedFile, covariant=True)


class Form(Protocol[_Kept_co]):
    """Form that the cache stores frames in."""

    files: ClassVar[tuple[str, str]]

    def name(self, source: FrameSource) -> str: ...

    def bytes(self, source: FrameSource) -> int: ...

    def write(self, directory: Path, source: FrameSource) -> dict[str, Any]: ...

    def read(self, directory: Path, index: Mapping[str, Any], source: FrameSource) -> _Kept_co: ...
