"""SHA-256 of dataset files, remembered between runs so that large videos are not read again each time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from .files import require_file

_SETTLED_SECONDS = 3.0


def file_digest(path: Path, *, memory: Path) -> str:
    """The SHA-256 of a file's content, in hex.

    `memory` is a directory of remembered digests, each valid while the file's size, inode and times of last
    change stay the same. A file changed within the last seconds is never remembered, because the clock of
    a file system is too coarse to tell a second change from the first.

    Raises:
        DatasetError: the file is missing, empty or a git-LFS pointer.
    """
    require_file(path)
    stat = path.stat()
    state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    note = memory / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(note.read_text())
        if remembered["state"] == state:
            return str(remembered["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS:
        _remember(note, json.dumps({"state": state, "sha256": digest}))
    return digest


def _remember(note: Path, text: str) -> None:
    """Write atomically; a cache that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(note)
