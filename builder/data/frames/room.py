"""Room in the frame cache: entries in use are leased, and the least recently used others make way.

    <cache root>/leases/<name>     keys of the entries that a process uses, one a line; locked while it does

The disk is never filled: a twentieth of it stays free. `$POLICYSMITH_CACHE_SIZE`, such as `200GB`, lowers the
size of the cache further.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ....schemas.errors import DatasetError

SPARE = 0.05
"""Part of a disk that stays free."""
_NEW = ".new-"
"""Prefix of a lease that is not yet locked."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """Decoded frames of one file in the cache.

    Attributes:
        bytes: Size on disk.
        used: Time of the last use, in seconds since 1970.
        leased: Whether a process uses it now.
        source: Name of the file that it was decoded from.
    """

    directory: Path
    bytes: int
    used: float
    leased: bool
    source: str


class Lease:
    """Lease of entries, which lasts until the object or the process ends."""

    def __init__(self, root: Path, keys: Iterable[str]) -> None:
        folder = root / "leases"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor, new = tempfile.mkstemp(dir=folder, prefix=_NEW)
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.write(descriptor, "\n".join(keys).encode())
            name = new.replace(_NEW, "", 1)
            Path(new).rename(name)  # locked and complete: no other process takes it for that of an ended one
        except OSError:
            return
        self._end = weakref.finalize(self, _end_lease, descriptor, name, os.getpid())


def _end_lease(descriptor: int, name: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not end the lease of its parent
        Path(name).unlink(missing_ok=True)
    os.close(descriptor)


def leased(root: Path) -> set[str]:
    """Return the keys of the entries that some process uses, and remove the leases of ended processes."""
    keys: set[str] = set()
    folder = root / "leases"
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(_NEW):
            continue
        with contextlib.suppress(OSError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                keys.update(file.read().split())
            else:
                path.unlink(missing_ok=True)
    return keys


def entries(root: Path) -> list[Entry]:
    """Return the entries of the cache, the least recently used first."""
    held = leased(root)
    found = []
    for index in root.glob("*/index.json"):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(index.read_text())
            source = str(content.get("source", "")) if isinstance(content, dict) else ""
            size = sum(file.stat().st_size for file in index.parent.iterdir())
            key = index.parent.name
            found.append(Entry(index.parent, size, index.stat().st_mtime, key in held, source))
    return sorted(found, key=lambda entry: (entry.used, entry.directory))


def limit() -> float:
    """Return the number of bytes that the cache may hold, from `$POLICYSMITH_CACHE_SIZE`; infinite without it.

    Raises:
        DatasetError: It is not a size.
    """
    text = os.environ.get("POLICYSMITH_CACHE_SIZE", "").strip()
    return size_in_bytes(text, "POLICYSMITH_CACHE_SIZE") if text else float("inf")


def size_in_bytes(text: str, name: str) -> float:
    """Return the bytes of a size such as `200GB`, or raise DatasetError with the `name` of the setting."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise DatasetError(f"{name} is {text!r}, not a size; use a number and a unit, such as 200GB")
    return float(match[1]) * _UNITS[match[2].upper()]


def room(root: Path, *, reclaim: bool) -> float:
    """Return the bytes that may be added to the cache, with `reclaim` after the removal of unused entries."""
    disk = shutil.disk_usage(root)
    held = entries(root)
    unused = sum(entry.bytes for entry in held if not entry.leased) if reclaim else 0
    total = sum(entry.bytes for entry in held)
    return min(disk.free + unused - SPARE * disk.total, limit() - (total - unused))


def make_room(root: Path, needed: float) -> list[Entry]:
    """Remove least recently used entries that no process uses until `needed` bytes fit; return the removed."""
    removed: list[Entry] = []
    short = needed - room(root, reclaim=False)
    for entry in entries(root):
        if short <= 0:
            break
        if not entry.leased:
            remove(entry)
            removed.append(entry)
            short -= entry.bytes
    return removed


def remove(entry: Entry) -> None:
    """Remove an entry: first its index, so that no process takes it for complete."""
    (entry.directory / "index.json").unlink(missing_ok=True)
    shutil.rmtree(entry.directory, ignore_errors=True)


def keep_largest(root: Path, most: float) -> Iterator[Entry]:
    """Remove and yield least recently used entries until the others have at most `most` bytes."""
    held = entries(root)
    total = sum(entry.bytes for entry in held)
    for entry in held:
        if total <= most:
            return
        if not entry.leased:
            remove(entry)
            total -= entry.bytes
            yield entry
