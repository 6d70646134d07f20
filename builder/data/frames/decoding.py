"""Decoding of a camera's file: an mp4, or images in a parquet column."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import PIL
from PIL import Image

from ....schemas.errors import DatasetError
from ..lerobot.features import RGB_ONLY, Storage
from ..lerobot.files import open_parquet, reading, require_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

_IMAGES_AT_ONCE = 64
_PNG_BITS = 24  # offset of the bit depth in the header of a PNG file
_ENDLESS = 1_000
"""Number of frames, beyond twice the expected number, after which decoding stops."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_CONTAINER = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg",
}
"""Options that reject playlists and scripts, which name other files."""


@dataclass(frozen=True, slots=True)
class FrameSource:
    """One file of one camera.

    Attributes:
        column: Parquet column of a camera stored as images; empty for a video.
        frames: Number of frames expected by the metadata.
        height: Expected height in pixels.
        width: Expected width in pixels.
    """

    path: Path
    storage: Storage
    column: str
    frames: int
    height: int
    width: int

    @property
    def decoder(self) -> str:
        """Decoder and version; part of the cache key, as decoders differ in rounding."""
        if self.storage is Storage.VIDEO:
            return f"pyav-{av.__version__} rgb24"
        return f"pillow-{PIL.__version__} rgb {self.column}"

    @property
    def most_frames(self) -> int:
        """Number of frames after which reading stops."""
        return 2 * self.frames + _ENDLESS

    def endless(self, count: int) -> DatasetError:
        """Return the error for a file that has more frames than that."""
        return DatasetError(
            f"{self.path} has more than {count:,} frames, but the metadata expects {self.frames:,}; "
            "the file belongs to another version, so download or convert the dataset again"
        )


def decode(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    """Yield each frame, uint8 RGB (H, W, 3), with its time in seconds since the first frame.

    The time of an image in a parquet file is its row number.

    Raises:
        DatasetError: The file is missing, a git-LFS pointer or truncated, or its frames differ in size from
            the metadata or are not 8-bit RGB.
    """
    return _decode_video(source) if source.storage is Storage.VIDEO else _decode_images(source)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the container and the first video stream of a video while the context is active.

    Raises:
        DatasetError: The file is missing, damaged or not a video, or decoding it fails.
    """
    require_file(path)
    try:
        with av.open(str(path), options=_CONTAINER) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no video stream; download or convert it again")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except DatasetError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DatasetError(
            f"{path} cannot be decoded ({reason}); it is probably truncated, so download or copy it again"
        ) from error


def check_format(path: Path, form: av.VideoFormat) -> None:
    """Raise DatasetError for gray frames of more than 8 bits, which contain depth or another measurement."""
    bits = max(component.bits for component in form.components)
    if len(form.components) < 3 and bits > 8:
        raise DatasetError(
            f"{path} contains {form.name}, gray with {bits} bits per pixel; {RGB_ONLY}, so leave out or convert this camera"
        )


def check_size(source: FrameSource, height: int, width: int, what: str = "a frame") -> None:
    """Raise DatasetError if the size of an image differs from the metadata."""
    if (height, width) != (source.height, source.width):
        raise DatasetError(
            f"{source.path}: {what} has {height} x {width} pixels (height x width), but meta/info.json specifies "
            f"{source.height} x {source.width}; correct info.json or convert the dataset again"
        )


def _decode_video(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    path, count, first = source.path, 0, 0.0
    try:
        with open_video(path) as (container, stream):
            check_size(source, stream.codec_context.height, stream.codec_context.width, "the video")
            for frame in container.decode(stream):
                if not count:
                    check_format(path, frame.format)
                check_size(source, frame.height, frame.width)
                seconds = float(count) if frame.time is None else float(frame.time)
                first = first if count else seconds
                count += 1
                if count > source.most_frames:
                    raise source.endless(count)
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8), seconds - first
    except DatasetError as error:
        if count and isinstance(error.__cause__, av.FFmpegError):
            reason = error.__cause__.strerror
            raise DatasetError(
                f"{path} cannot be decoded after {count} frames ({reason}); it is probably truncated, so "
                "download or copy it again"
            ) from error
        raise


def _decode_images(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    for row, data in image_cells(source):
        yield decode_image(source, data, row), float(row)


def image_cells(source: FrameSource) -> Iterator[tuple[int, bytes]]:
    """Yield the row and the encoded bytes of each image of a parquet file.

    Raises:
        DatasetError: A row has no image bytes.
    """
    path, column, row = source.path, source.column, 0
    with open_parquet(path, columns=[column]) as file, reading(path):
        for batch in file.iter_batches(batch_size=_IMAGES_AT_ONCE, columns=[column]):
            for cell in batch.column(batch.schema.get_field_index(column)).to_pylist():
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(data, bytes):
                    raise DatasetError(
                        f"{path}: row {row} of `{column}` has no image bytes (only a path, or nothing); "
                        "embed the images in the parquet file"
                    )
                yield row, data
                row += 1


def decode_image(source: FrameSource, data: bytes, row: int) -> npt.NDArray[np.uint8]:
    """Decode an image, uint8 RGB (H, W, 3), after comparing its header with the metadata.

    Raises:
        DatasetError: The image is damaged, differs in size from the metadata, or is not 8-bit RGB.
    """
    place = f"row {row} of `{source.column}`"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            check_size(source, image.height, image.width, f"the image in {place}")
            wide = image.format == "PNG" and data[_PNG_BITS] > 8  # Pillow would drop the lower bits
            if image.mode not in ("RGB", "P") or wide:
                form = "PNG with 16 bits per channel" if wide else f"{image.format} of mode {image.mode}"
                raise DatasetError(
                    f"{source.path}: {place} is a {form}; {RGB_ONLY}, so leave out or convert this camera"
                )
            return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(
            f"{source.path}: {place} is an image of excessive size ({error}); replace it"
        ) from error
    except Exception as error:
        raise DatasetError(
            f"{source.path}: {place} is not a readable image ({error}); download or convert it again"
        ) from error
