"""Decodes a camera's file from its first frame to its last: an mp4, or images stored in a parquet column."""

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
_PNG_BITS = 24  # place of the bit depth in the header of a PNG file
_ENDLESS = 1_000
"""Frames beyond twice those expected after which a video is given up."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_CONTAINER = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg",
}
"""No playlist or script that names other files is taken for a video."""


@dataclass(frozen=True, slots=True)
class FrameSource:
    """One file of one camera. `frames` is the count that the metadata expects; sizes are in pixels.

    `column` is the parquet column of a camera stored as images, and empty for a video.
    """

    path: Path
    storage: Storage
    column: str
    frames: int
    height: int
    width: int

    @property
    def decoder(self) -> str:
        """What turns the file's bytes into pixels; part of the cache key, as decoders differ in rounding."""
        if self.storage is Storage.VIDEO:
            return f"pyav-{av.__version__} rgb24"
        return f"pillow-{PIL.__version__} rgb {self.column}"


def decode(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    """Yield each frame, uint8 RGB (H, W, 3), with its time in seconds since the first frame.

    Images in a parquet file carry no time of their own: theirs is their row number.

    Raises:
        DatasetError: the file is missing, a git-LFS pointer, truncated, or its frames have another size than
            the metadata says, or are not 8-bit RGB.
    """
    return _decode_video(source) if source.storage is Storage.VIDEO else _decode_images(source)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video: its container and its first video stream.

    Raises:
        DatasetError: the file is missing, damaged, no video, or whatever goes wrong while it is open.
    """
    require_file(path)
    try:
        with av.open(str(path), options=_CONTAINER) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no video stream. Download or convert it again")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except DatasetError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DatasetError(
            f"{path} cannot be decoded ({reason}). It is probably truncated: download or copy it again"
        ) from error


def _check_format(path: Path, form: av.VideoFormat) -> None:
    """Raise DatasetError for gray frames of more than 8 bits, which hold depth or another measurement."""
    bits = max(component.bits for component in form.components)
    if len(form.components) < 3 and bits > 8:
        raise DatasetError(
            f"{path} holds {form.name}, gray with {bits} bits a pixel; {RGB_ONLY}. Leave this camera out, or convert it"
        )


def image_sized(source: FrameSource, height: int, width: int, what: str = "a frame") -> None:
    """Raise DatasetError for an image of another size than the metadata says."""
    if (height, width) != (source.height, source.width):
        raise DatasetError(
            f"{source.path}: {what} measures {height} x {width} pixels (height x width), but meta/info.json says "
            f"{source.height} x {source.width}. Correct info.json or convert the dataset again"
        )


def _decode_video(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    path, count, first = source.path, 0, 0.0
    try:
        with open_video(path) as (container, stream):
            for frame in container.decode(stream):
                if not count:
                    _check_format(path, frame.format)
                image_sized(source, frame.height, frame.width)
                seconds = float(count) if frame.time is None else float(frame.time)
                first = first if count else seconds
                count += 1
                if count > 2 * source.frames + _ENDLESS:
                    raise DatasetError(
                        f"{path} has more than {count:,} frames, but the metadata gives it {source.frames:,} rows. "
                        "It belongs to another version: download or convert the dataset again"
                    )
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8), seconds - first
    except DatasetError as error:
        if count and isinstance(error.__cause__, av.FFmpegError):
            reason = error.__cause__.strerror
            raise DatasetError(
                f"{path} cannot be decoded after {count} frames ({reason}). It is probably truncated: "
                "download or copy it again"
            ) from error
        raise


def _decode_images(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    for row, data in image_cells(source):
        yield decode_image(source, data, row), float(row)


def image_cells(source: FrameSource) -> Iterator[tuple[int, bytes]]:
    """Yield the row and the encoded bytes of each image of a parquet file. Raises DatasetError where there are none."""
    path, column, row = source.path, source.column, 0
    with open_parquet(path, columns=[column]) as file, reading(path):
        for batch in file.iter_batches(batch_size=_IMAGES_AT_ONCE, columns=[column]):
            for cell in batch.column(batch.schema.get_field_index(column)).to_pylist():
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(data, bytes):
                    raise DatasetError(
                        f"{path}: row {row} of `{column}` holds no image bytes (only a path, or nothing). "
                        "Embed the images in the parquet file"
                    )
                yield row, data
                row += 1


def decode_image(source: FrameSource, data: bytes, row: int) -> npt.NDArray[np.uint8]:
    """Decode an image, uint8 RGB (H, W, 3), whose header is held against the metadata first. Raises DatasetError."""
    place = f"row {row} of `{source.column}`"
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image_sized(source, image.height, image.width, f"the image in {place}")
            wide = image.format == "PNG" and data[_PNG_BITS] > 8  # Pillow would drop the lower bits
            if image.mode not in ("RGB", "P") or wide:
                form = "PNG with 16 bits a channel" if wide else f"{image.format} of mode {image.mode}"
                raise DatasetError(
                    f"{source.path}: {place} is a {form}; {RGB_ONLY}. Leave this camera out, or convert it"
                )
            return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(
            f"{source.path}: {place} is an image of absurd size ({error}). Replace it"
        ) from error
    except Exception as error:
        raise DatasetError(
            f"{source.path}: {place} is not a readable image ({error}). Download or convert it again"
        ) from error
