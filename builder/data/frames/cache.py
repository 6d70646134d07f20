"""Frame cache: every camera file, decoded once into raw uint8 frames.

Each source file has one directory, named by a hash of the file's content and the decoder:

    <cache root>/<key>/frames.u8        uint8 (N, 3, H, W), no header
                       timestamps.npy   float64 (N,), seconds since the first frame
                       index.json       counts, sizes and the SHA-256 of both files

A directory is written under a temporary name and renamed when complete; a lock file keeps two processes from
doing the same work. Files are compared with their digests when they are opened, once as long as they do not
change, and rebuilt if they differ. Frames are read rather than mapped, so that a file truncated meanwhile
raises an error instead of a signal. Directories are private to their owner. The root is `$POLICYSMITH_CACHE`,
or `policysmith/frames` in the XDG cache directory. If there is no room for more, the least recently used
entries that no process uses are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ....schemas.errors import DatasetError
from ....schemas.paths import expanded
from .decoding import FrameSource
from .digests import digest, file_digest, remember
from .open_files import open_files
from .room import Lease, make_room, room
from .stored import DamagedError, Form, Stored

_logger = logging.getLogger(__name__)
_FORMAT = 1
_MAX_FILES_AT_ONCE = 4


def cache_root() -> Path:
    """Return the directory of the frame cache, which may not exist yet."""
    chosen = os.environ.get("POLICYSMITH_CACHE")
    if chosen:
        return expanded(chosen).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(home).absolute() / "policysmith" / "frames"


def writable_root() -> Path:
    """Return the directory of the frame cache, created if it is missing.

    Raises:
        DatasetError: It cannot be created.
    """
    root = cache_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"the frame cache {root} cannot be created ({error.strerror}); set POLICYSMITH_CACHE to a writable directory"
        ) from error
    return root


def cache_frames(sources: Sequence[FrameSource], forms: Sequence[Form[Stored]]) -> tuple[list[Stored], Lease]:
    """Store the sources that are not cached yet in their forms, several at a time.

    Returns:
        The files of all sources, and the lease that keeps them in the cache.

    Raises:
        DatasetError: A source is damaged, or the cache cannot be written to or lacks space.
    """
    root = writable_root()
    pool = ThreadPoolExecutor(max_workers=min(_MAX_FILES_AT_ONCE, os.cpu_count() or 1))
    try:
        keys = list(pool.map(lambda source, form: entry_key(source, form, root), sources, forms))
        lease = Lease(root, keys)
        missing = {
            key: (source, form)
            for key, source, form in zip(keys, sources, forms, strict=True)
            if not (root / key).exists()
        }
        _check_space(root, list(missing.values()))
        files = list(pool.map(lambda *one: _cached(root, *one), keys, sources, forms))
        return files, lease
    finally:
        pool.shutdown(cancel_futures=True)


def entry_key(source: FrameSource, form: Form[Any], root: Path) -> str:
    """Return the name of the directory of a source's frames in a form."""
    digest = file_digest(source.path, memory=root / "digests")
    return hashlib.sha256(f"{_FORMAT} {digest} {form.name(source)}".encode()).hexdigest()[:32]


def _check_space(root: Path, missing: Sequence[tuple[FrameSource, Form[Any]]]) -> None:
    if not missing:
        return
    needed = sum(form.bytes(source) for source, form in missing)
    if needed > room(root, reclaim=False):
        for entry in make_room(root, needed):
            _logger.info("removed the cached frames of %s (%.3g GB)", entry.source, entry.bytes / 1e9)
    free = room(root, reclaim=False)
    if needed > free:
        raise DatasetError(
            f"decoding {len(missing)} files needs {needed / 1e9:.3g} GB in {root}, which has room for "
            f"{max(free, 0) / 1e9:.3g} GB; free some space there, set POLICYSMITH_CACHE to a larger disk, decode while "
            "training with `data.frames: stream`, or choose fewer episodes or cameras"
        )
    _logger.info("decoding %d files into %s (%.3g GB)", len(missing), root, needed / 1e9)


def _cached(root: Path, key: str, source: FrameSource, form: Form[Stored]) -> Stored:
    directory = root / key
    if directory.exists():
        with contextlib.suppress(DamagedError):
            return _validated(root, directory, source, form)
    with locked(root / f"{key}.lock") as alone:
        if directory.exists():
            try:
                return _validated(root, directory, source, form)
            except DamagedError as damage:
                _logger.warning(
                    "the cached frames of %s are damaged or of another version (%s); decoding again",
                    source.path,
                    damage,
                )
                shutil.rmtree(directory, ignore_errors=True)
        if alone:
            for abandoned in root.glob(f"{key}.*.tmp"):
                shutil.rmtree(abandoned, ignore_errors=True)
        _build(root, key, source, form)
    try:
        return _validated(root, directory, source, form)
    except DamagedError as damage:
        raise DatasetError(
            f"the frames just written to {directory} are damaged ({damage}); check the disk"
        ) from None


def _validated(root: Path, directory: Path, source: FrameSource, form: Form[Stored]) -> Stored:
    for name in form.files:
        open_files.close(directory / name)
    try:
        index = json.loads((directory / "index.json").read_text())
        written = {name: str(index["sha256"][name]) for name in form.files}
        file = form.read(directory, index, source)
        for name, sha256 in written.items():
            if digest(directory / name, memory=root / "digests") != sha256:
                raise DamagedError(f"the SHA-256 of {name} differs")
    except PermissionError as error:
        raise DatasetError(
            f"the cached frames in {directory} belong to another user; set POLICYSMITH_CACHE to your own directory"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise DamagedError(f"files are incomplete: {error!r}") from error
    with contextlib.suppress(OSError):
        os.utime(directory / "index.json")  # the time of the last use
    return file


def _build(root: Path, key: str, source: FrameSource, form: Form[Any]) -> None:
    work: Path | None = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
        index = form.write(work, source)
        facts = {"source": source.path.name, "decoder": form.name(source), **index}
        (work / "index.json").write_text(json.dumps(facts, indent=1))
        work.rename(root / key)
        for name, sha256 in index["sha256"].items():
            remember(root / key / name, sha256, memory=root / "digests")
    except OSError as error:
        if (root / key).exists():
            return
        raise DatasetError(
            f"the frames of {source.path} cannot be written to {root} ({error.strerror or error}); "
            "free some space there or set POLICYSMITH_CACHE to another directory"
        ) from error
    finally:
        if work is not None and work.exists():
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock while the context is active; yields False if the file system has no locks."""
    try:
        file = path.open("a")
    except OSError as error:
        raise DatasetError(
            f"the frame cache {path.parent} cannot be written to ({error.strerror}); "
            "set POLICYSMITH_CACHE to a writable directory"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
