"""A table of tensors on disk, one row a sample, mapped into memory.

    <directory>/0.bin, 1.bin, ...   one tensor (N, ...) each, no header
                index.json          by key: file, shape, dtype, and SHA-256

A table is written under another name and renamed when it is whole, so that a directory of this name is a
whole table. Its files are verified against their digests when it is opened, and again only if they change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....schemas.errors import DatasetError
from ...data.frames.digests import digest, plain_digest, remember


class DamagedTableError(Exception):
    """Raised when the files of a table do not match its index."""


class UnlikeRowsError(Exception):
    """Raised when samples cannot be rows of one table."""


class Rows:
    """Tensors (N, ...) by key. `sizes` are the bytes that the files of mapped tensors must keep."""

    def __init__(self, tensors: Mapping[str, Tensor], sizes: Mapping[Path, int] | None = None) -> None:
        self.tensors, self._sizes = dict(tensors), dict(sizes or {})

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the rows of these samples (B, ...), by key, on the device of the table.

        Raise DatasetError if a file of the table was cut or removed, which would end the process by a signal.
        """
        self._check()
        device = next(iter(self.tensors.values())).device
        chosen = torch.tensor(indices, dtype=torch.int64)
        chosen = chosen.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else chosen
        return {key: tensor.index_select(0, chosen) for key, tensor in self.tensors.items()}

    def to(self, device: torch.device) -> Rows:
        """Copy the table to a device. Raise DatasetError as `batch` does."""
        self._check()
        return Rows({key: tensor.to(device) for key, tensor in self.tensors.items()})

    def _check(self) -> None:
        for path, size in self._sizes.items():
            try:
                now = path.stat().st_size
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                if now == size:
                    continue
                reason = f"{now} bytes instead of {size}"
            raise DatasetError(
                f"the stored features in {path} are gone or damaged ({reason}); "
                "start again, with `--resume` if there is a checkpoint: they are computed again"
            )


class RowsWriter:
    """Writer of a table in the new directory `work`, which is renamed to `directory` in the end."""

    def __init__(self, work: Path, directory: Path, row: Mapping[str, Tensor], count: int) -> None:
        """Prepare for `count` rows like `row`, one sample (1, ...) of every key."""
        self._work, self._directory, self._count = work, directory, count
        self._row = dict(row)
        self._files = {key: f"{position}.bin" for position, key in enumerate(row)}
        self._maps: dict[str, Tensor] = {}

    def create(self) -> None:
        """Reserve the files, in one of the processes. Raise OSError if the disk is too small."""
        for key, file in self._files.items():
            size = self._row[key].numel() * self._row[key].element_size() * self._count
            with (self._work / file).open("wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, size)

    def write(self, first: int, batch: Mapping[str, Tensor], size: int) -> None:
        """Write a batch (`size`, ...) from row `first` on.

        Raise UnlikeRowsError if its rows are unlike the first.
        """
        if batch.keys() != self._files.keys():
            raise UnlikeRowsError(f"`{min(batch.keys() ^ self._files.keys())}` is in some batches only")
        if not self._maps:
            self._maps = {key: self._mapped(key, "r+") for key in self._files}
        for key, target in self._maps.items():
            values = batch[key]
            if values.shape != (size, *target.shape[1:]):
                raise UnlikeRowsError(
                    f"`{key}` of {size} samples is {tuple(values.shape)}, not {(size, *target.shape[1:])}"
                )
            target[first : first + size] = values.to("cpu", target.dtype)

    def finish(self) -> None:
        """Name the whole table, in one of the processes, after all have written.

        Raise OSError if that fails.
        """
        index = {}
        for key, file in self._files.items():
            with (self._work / file).open("rb") as handle:
                os.fsync(handle.fileno())
            index[key] = {
                "file": file,
                "shape": self._shape(key),
                "dtype": str(self._row[key].dtype).removeprefix("torch."),
                "sha256": plain_digest(self._work / file),
            }
        (self._work / "index.json").write_text(json.dumps(index, indent=1))
        self._work.rename(self._directory)
        for entry in index.values():
            path = self._directory / str(entry["file"])
            remember(path, str(entry["sha256"]), memory=digests_of(self._directory))

    def _shape(self, key: str) -> list[int]:
        return [self._count, *self._row[key].shape[1:]]

    def _mapped(self, key: str, mode: str) -> Tensor:
        return _map(self._work / self._files[key], self._shape(key), self._row[key].dtype, mode)


def digests_of(directory: Path) -> Path:
    """Return the file that remembers the digests of a table's files."""
    return directory.parent / "digests"


def open_rows(directory: Path) -> Rows:
    """Open the table in a directory. Raise DamagedTableError if it is not whole."""
    tensors, sizes = {}, {}
    try:
        index = json.loads((directory / "index.json").read_text())
        for key, entry in index.items():
            path, dtype = directory / Path(entry["file"]).name, getattr(torch, entry["dtype"])
            tensors[key] = _map(path, entry["shape"], dtype, "c")
            sizes[path] = path.stat().st_size
            if digest(path, memory=digests_of(directory)) != entry["sha256"]:
                raise DamagedTableError(f"the SHA-256 of `{key}` differs")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise DamagedTableError(f"its files are incomplete: {error!r}") from error
    if not tensors:
        raise DamagedTableError("it is empty")
    return Rows(tensors, sizes)


def _map(path: Path, shape: Sequence[int], dtype: torch.dtype, mode: str) -> Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    if path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
    raw = np.memmap(path, dtype=np.uint8, mode=mode, shape=(size,))  # type: ignore[call-overload]
    mapped: Tensor = torch.from_numpy(raw).view(dtype).reshape(*shape)
    return mapped
