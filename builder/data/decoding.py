"""Decodes a camera's file from its first frame to its last: an mp4, or images stored in a parquet column."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import PIL
import pyarrow as pa
from PIL import Image

from ...schemas.errors import DatasetError
from .features import RGB_ONLY, Storage
from .files import damaged_parquet, open_parquet, require_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

_IMAGES_AT_ONCE = 64
_PNG_BITS = 24  # place of the bit depth in the header of a PNG file


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
    frames = _decode_video(source.path) if source.storage is Storage.VIDEO else _decode_images(source)
    for image, seconds in frames:
        if image.shape != (source.height, source.width, 3):
            raise DatasetError(
                f"{source.path}: a frame measures {image.shape[0]} x {image.shape[1]} pixels, but meta/info.json "
                f"says {source.height} x {source.width}. Correct info.json or convert the dataset again"
            )
        yield image, seconds


def _decode_video(path: Path) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    require_file(path)
    count, first = 0, 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"{path} has no video stream. Download or convert it again")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if not count:
                    _check_format(path, frame.format)
                seconds = float(count) if frame.time is None else float(frame.time)
                first = first if count else seconds
                count += 1
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8), seconds - first
    except av.FFmpegError as error:
        raise DatasetError(
            f"{path} cannot be decoded after {count} frames ({error.strerror}). It is probably truncated: "
            "download or copy it again"
        ) from error


def _check_format(path: Path, form: av.VideoFormat) -> None:
    """Raise DatasetError for gray frames of more than 8 bits, which hold depth or another measurement."""
    bits = max(component.bits for component in form.components)
    if len(form.components) < 3 and bits > 8:
        raise DatasetError(
            f"{path} holds {form.name}, gray with {bits} bits a pixel; {RGB_ONLY}. Leave this camera out, or convert it"
        )


def _decode_images(source: FrameSource) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    path, column = source.path, source.column
    file = open_parquet(path, columns=[column])
    row = 0
    try:
        for batch in file.iter_batches(batch_size=_IMAGES_AT_ONCE, columns=[column]):
            for cell in batch.column(batch.schema.get_field_index(column)).to_pylist():
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(data, bytes):
                    raise DatasetError(
                        f"{path}: row {row} of `{column}` holds no image bytes (only a path, or nothing). "
                        "Embed the images in the parquet file"
                    )
                yield _decode_image(data, path, column, row), float(row)
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise damaged_parquet(path, error) from error


def _decode_image(data: bytes, path: Path, column: str, row: int) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            wide = image.format == "PNG" and data[_PNG_BITS] > 8  # Pillow would drop the lower bits
            if image.mode not in ("RGB", "P") or wide:
                form = "PNG with 16 bits a channel" if wide else f"{image.format} of mode {image.mode}"
                raise DatasetError(
                    f"{path}: row {row} of `{column}` is a {form}; {RGB_ONLY}. Leave this camera out, or convert it"
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(
            f"{path}: row {row} of `{column}` is not a readable image ({error}). Download or convert it again"
        ) from error
