"""SHA-256 digests of files, cached so that large files are read only once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from ..lerobot.files import require_file

_SETTLED_SECONDS = 3.0
"""Age beyond which the time stamps of a file distinguish later changes, on any file system."""
_OWN_SETTLED_SECONDS = 0.05
"""The same for a file that this process has just written into a private directory."""


def file_digest(path: Path, *, memory: Path) -> str:
    """Return the SHA-256 of a dataset file, in hex, cached like that of `digest`.

    Raises:
        DatasetError: The file is missing, empty or a git-LFS pointer.
    """
    return digest(require_file(path), memory=memory)


def digest(path: Path, *, memory: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    `memory` is a directory of cached digests, each valid while the size, inode and time stamps of the file
    stay the same. The digest of a file changed within the last seconds is not cached, because the clock of a
    file system is too coarse to distinguish a second change.

    Raises:
        OSError: The file cannot be read.
    """
    stat = path.stat()
    note = _note(path, memory)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        remembered = json.loads(note.read_text())
        if remembered["state"] == _state(stat):
            return str(remembered["sha256"])
    found = plain_digest(path)
    if _age(stat) > _SETTLED_SECONDS:
        _remember(note, stat, found)
    return found


def plain_digest(path: Path) -> str:
    """Return the SHA-256 of a file without the cache, or raise OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remember(path: Path, sha256: str, *, memory: Path) -> None:
    """Cache the digest of a file that this process has just written and that no other process writes to."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        if _age(stat) > _OWN_SETTLED_SECONDS:
            _remember(_note(path, memory), stat, sha256)


def _note(path: Path, memory: Path) -> Path:
    return memory / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()


def _state(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _age(stat: os.stat_result) -> float:
    return time.time() - max(stat.st_mtime, stat.st_ctime)


def _remember(note: Path, stat: os.stat_result, sha256: str) -> None:
    """Write a digest atomically; failures are ignored, as they only cost time."""
    text = json.dumps({"state": _state(stat), "sha256": sha256})
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(note)
