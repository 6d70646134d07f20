"""Frame cache: every camera file, decoded once into raw uint8 frames.

Each source file has one directory, named by a hash of the file's content and the decoder:

    <cache root>/<key>/frames.u8        uint8 (N, 3, H, W), no header
                       timestamps.npy   float64 (N,), seconds since the first frame
                       index.json       counts, sizes and the SHA-256 of both files

A directory is written under a temporary name and renamed when complete; a lock file keeps two processes from
doing the same work. Files are compared with their digests when they are opened, once as long as they do not
change, and rebuilt if they differ. Frames are read rather than mapped, so that a file truncated meanwhile
raises an error instead of a signal. Directories are private to their owner. The root is `$POLICYSMITH_CACHE`,
or `policysmith/frames` in the XDG cache directory.
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
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ....schemas.errors import DatasetError
from ....schemas.paths import expanded
from .decoding import decode
from .digests import digest, file_digest, plain_digest, remember

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from .decoding import FrameSource

_logger = logging.getLogger(__name__)
_FORMAT = 1
FRAMES, TIMES = "frames.u8", "timestamps.npy"
_MAX_FILES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class FrameFile:
    """Decoded frames of one source file, each of `height` x `width` pixels."""

    directory: Path
    source: Path
    frames: int
    height: int
    width: int

    def open(self) -> FrameReader:
        """Open the file for reading single frames.

        Raises:
            DatasetError: The cache was removed or truncated since the dataset was opened.
        """
        return FrameReader(self)

    def timestamps(self) -> npt.NDArray[np.float64]:
        """Return the seconds since the first frame, float64 (N,)."""
        times: npt.NDArray[np.float64] = np.load(self.directory / TIMES)
        return times


class FrameReader:
    """Reader of the frames of one file, which stays open as long as the reader exists."""

    def __init__(self, file: FrameFile) -> None:
        self._directory, self._frame = file.directory, 3 * file.height * file.width
        with self._explained():
            self._descriptor = os.open(file.directory / FRAMES, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            size = os.fstat(self._descriptor).st_size
            if size != file.frames * self._frame:
                raise OSError(f"{size} bytes instead of {file.frames * self._frame}")

    def read_into(self, frame: int, out: npt.NDArray[np.uint8]) -> None:
        """Copy one frame into a contiguous uint8 array (3, H, W).

        Raises:
            DatasetError: The frame cannot be read.
        """
        with self._explained():
            left = out.data.cast("B")
            while left:
                done = os.preadv(self._descriptor, [left], (frame + 1) * self._frame - len(left))
                if done == 0:
                    raise OSError(f"the file ends before frame {frame}")
                left = left[done:]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatasetError(
                f"the cached frames in {self._directory} are missing or damaged ({error.strerror or error}); "
                "start again, and they are rebuilt when the dataset is opened"
            ) from error


class _DamagedError(Exception):
    """Raised when a cache directory does not match its index."""


def cache_root() -> Path:
    """Return the directory of the frame cache, which may not exist yet."""
    chosen = os.environ.get("POLICYSMITH_CACHE")
    if chosen:
        return expanded(chosen).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(home).absolute() / "policysmith" / "frames"


def cache_frames(sources: Sequence[FrameSource]) -> list[FrameFile]:
    """Decode the sources that are not cached yet, several at a time, and return the files of all.

    Raises:
        DatasetError: A source is damaged, or the cache cannot be written to or lacks space.
    """
    root = cache_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"the frame cache {root} cannot be created ({error.strerror}); set POLICYSMITH_CACHE to a writable directory"
        ) from error
    pool = ThreadPoolExecutor(max_workers=min(_MAX_FILES_AT_ONCE, os.cpu_count() or 1))
    try:
        keys = list(pool.map(lambda source: _key(source, root), sources))
        missing = {
            key: source for key, source in zip(keys, sources, strict=True) if not (root / key).exists()
        }
        _check_space(root, list(missing.values()))
        return list(pool.map(lambda key, source: _cached(root, key, source), keys, sources))
    finally:
        pool.shutdown(cancel_futures=True)


def _key(source: FrameSource, root: Path) -> str:
    digest = file_digest(source.path, memory=root / "digests")
    return hashlib.sha256(f"{_FORMAT} {digest} {source.decoder}".encode()).hexdigest()[:32]


def _check_space(root: Path, missing: Sequence[FrameSource]) -> None:
    if not missing:
        return
    needed = sum(source.frames * 3 * source.height * source.width for source in missing)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DatasetError(
            f"decoding {len(missing)} files needs {needed / 1e9:.3g} GB in {root}, which has {free / 1e9:.3g} GB free; "
            "free some space there, set POLICYSMITH_CACHE to a larger disk, or choose fewer episodes or cameras"
        )
    _logger.info("decoding %d files into %s (%.3g GB)", len(missing), root, needed / 1e9)


def _cached(root: Path, key: str, source: FrameSource) -> FrameFile:
    directory = root / key
    if directory.exists():
        with contextlib.suppress(_DamagedError):
            return _validated(root, directory, source)
    with locked(root / f"{key}.lock") as alone:
        if directory.exists():
            try:
                return _validated(root, directory, source)
            except _DamagedError as damage:
                _logger.warning(
                    "the cached frames of %s are damaged or of another version (%s); decoding again",
                    source.path,
                    damage,
                )
                shutil.rmtree(directory, ignore_errors=True)
        if alone:
            for abandoned in root.glob(f"{key}.*.tmp"):
                shutil.rmtree(abandoned, ignore_errors=True)
        _build(root, key, source)
    try:
        return _validated(root, directory, source)
    except _DamagedError as damage:
        raise DatasetError(
            f"the frames just written to {directory} are damaged ({damage}); check the disk"
        ) from None


def _validated(root: Path, directory: Path, source: FrameSource) -> FrameFile:
    try:
        index = json.loads((directory / "index.json").read_text())
        count, height, width = int(index["frames"]), int(index["height"]), int(index["width"])
        written = {name: str(index["sha256"][name]) for name in (FRAMES, TIMES)}
        size = (directory / FRAMES).stat().st_size
        if size != count * 3 * height * width:
            raise _DamagedError(f"{FRAMES} has {size} bytes instead of {count * 3 * height * width}")
        for name, sha256 in written.items():
            if digest(directory / name, memory=root / "digests") != sha256:
                raise _DamagedError(f"the SHA-256 of {name} differs")
        times = np.load(directory / TIMES).shape
    except PermissionError as error:
        raise DatasetError(
            f"the cached frames in {directory} belong to another user; set POLICYSMITH_CACHE to your own directory"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        raise _DamagedError(f"files are incomplete: {error!r}") from error
    if times != (count,):
        raise _DamagedError(f"{TIMES} has the shape {times} for {count} frames")
    file = FrameFile(directory, source.path, count, height, width)
    if (height, width) != (source.height, source.width):
        raise DatasetError(
            f"{source.path} has frames of {height} x {width} pixels (height x width), but meta/info.json specifies "
            f"{source.height} x {source.width}; correct info.json or convert the dataset again"
        )
    return file


def _build(root: Path, key: str, source: FrameSource) -> None:
    work: Path | None = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
        written = _write(work, source)
        work.rename(root / key)
        for name, sha256 in written.items():
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


def _write(directory: Path, source: FrameSource) -> dict[str, str]:
    """Decode into a directory, and return the SHA-256 of each file written."""
    times: list[float] = []
    frames = hashlib.sha256()
    with (directory / FRAMES).open("wb") as file:
        for image, seconds in decode(source):
            frame = np.ascontiguousarray(image.transpose(2, 0, 1))
            file.write(frame.data)
            frames.update(frame.data)
            times.append(seconds)
        file.flush()
        os.fsync(file.fileno())
    if not times:
        raise DatasetError(
            f"{source.path} has no frames; it is probably truncated, so download or copy it again"
        )
    np.save(directory / TIMES, np.asarray(times, dtype=np.float64))
    written = {FRAMES: frames.hexdigest(), TIMES: plain_digest(directory / TIMES)}
    index = {
        "source": source.path.name,
        "decoder": source.decoder,
        "frames": len(times),
        "height": source.height,
        "width": source.width,
        "sha256": written,
    }
    (directory / "index.json").write_text(json.dumps(index, indent=1))
    return written


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
