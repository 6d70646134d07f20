"""Files of a dataset, opened so that a damaged one is reported with its cure."""

from __future__ import annotations

import json
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ....schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LFS_POINTER = b"version https://git-lfs"
_MOST_TEXT = 1 << 30
"""Size limit of a JSON file, in bytes."""
_SMALL = 1 << 20
"""Size in bytes below which a parquet file is read at once, which is faster than in pieces."""


def require_file(path: Path) -> Path:
    """Return `path` if it is a regular file, or a link to one, with content.

    Raises:
        DatasetError: It is missing, empty, a directory, device or pipe, or a git-LFS pointer without its
            content.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DatasetError(f"{path} is {_type_of(mode)}, not a file; download or copy it again")
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing, although the dataset's metadata refers to it; download or copy the dataset again"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise DatasetError(f"{path} cannot be read: {reason}; check its type and permissions") from error
    if not head:
        raise DatasetError(f"{path} is empty; download or copy it again")
    if head == LFS_POINTER:
        raise DatasetError(
            f"{path} is a git-LFS pointer, not the file itself; run `git lfs pull` in the clone of the dataset"
        )
    return path


def _type_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device or a socket"


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DatasetError: The file is missing, or is not a JSON object.
    """
    return _parse_object(_read_text(path), path=path, first_line=1)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line; blank lines are skipped.

    Raises:
        DatasetError: As raised by `read_json`, with the line at fault.
    """
    return [
        _parse_object(line, path=path, first_line=number)
        for number, line in enumerate(_read_text(path).splitlines(), start=1)
        if line.strip()
    ]


def open_parquet(path: Path, *, columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a parquet file that has at least `columns`.

    Raises:
        DatasetError: The file is missing, damaged, or lacks one of the columns.
    """
    size = require_file(path).stat().st_size
    with reading(path):
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()) if size < _SMALL else path)
        present = file.schema_arrow.names
    absent = [column for column in columns if column not in present]
    if absent:
        raise DatasetError(
            f"{path} has no column {_quoted(absent)}, only {_quoted(present)}, although `meta/info.json` or "
            "the dataset format requires it; convert or download the dataset again"
        )
    return file


def read_rows(path: Path, *, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read `columns` of a parquet file as one dict per row.

    Raises:
        DatasetError: As raised by `open_parquet`, also for text that is not UTF-8.
    """
    with open_parquet(path, columns=columns) as file, reading(path):
        rows: list[dict[str, Any]] = file.read(columns=list(columns)).to_pylist()
    return rows


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert any error of pyarrow while the parquet file `path` is read into a DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise _damaged_parquet(path, error) from error


def _damaged_parquet(path: Path, error: Exception) -> DatasetError:
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return DatasetError(
        f"{path} is not a readable parquet file ({reason}); it is probably truncated, so download or copy it again"
    )


def _read_text(path: Path) -> str:
    if (size := require_file(path).stat().st_size) > _MOST_TEXT:
        raise DatasetError(
            f"{path} has {size / 1e9:.3g} GB, too many for metadata; download or copy it again"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; download or copy it again") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; check the disk") from error


def _parse_object(text: str, *, path: Path, first_line: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{first_line + error.lineno - 1}"
        if text[error.pos :].lstrip().startswith("//"):
            raise DatasetError(
                f"{place} has a `//` comment, which JSON does not allow; remove the comment"
            ) from error
        raise DatasetError(f"{place} is not valid JSON ({error.msg}); repair or download it again") from error
    except (RecursionError, ValueError) as error:  # endless nesting, numbers of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"
        raise DatasetError(
            f"{path}:{first_line} is not usable JSON ({reason}); repair or download it again"
        ) from error
    if not isinstance(value, dict):
        raise DatasetError(
            f"{path}:{first_line} must be a JSON object, found {type(value).__name__}; repair or download it again"
        )
    return value


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
