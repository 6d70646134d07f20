"""SHA-256 of files, remembered between runs so that large ones are not read again each time."""

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
"""Age at which a file's times of last change tell one change from the next, on any file system."""
_OWN_SETTLED_SECONDS = 0.05
"""The same for a file that this process has just written into a directory of its own."""


def file_digest(path: Path, *, memory: Path) -> str:
    """The SHA-256 of a dataset file's content, in hex, remembered as by `digest`.

    Raises:
        DatasetError: the file is missing, empty or a git-LFS pointer.
    """
    return digest(require_file(path), memory=memory)


def digest(path: Path, *, memory: Path) -> str:
    """The SHA-256 of a file's content, in hex.

    `memory` is a directory of remembered digests, each valid while the file's size, inode and times of last
    change stay the same. A file changed within the last seconds is never remembered, because the clock of
    a file system is too coarse to tell a second change from the first.

    Raises:
        OSError: the file cannot be read.
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
    """The same, read in any case. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remember(path: Path, sha256: str, *, memory: Path) -> None:
    """Note the digest of a file that this process has just written and that nobody else writes to."""
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
    """Write atomically; a cache that cannot be written only costs time."""
    text = json.dumps({"state": _state(stat), "sha256": sha256})
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(note)
