"""The directory of a run: its checkpoints, the link to the newest, and who may touch them.

    <run>/policy                        link to the newest checkpoint
          checkpoints/step-00002000/    whole from the moment it has this name
          .lock                         held by the process that trains here

The kernel releases locks when a process ends, however it ends. Where a file system has none, nothing is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ..schemas.errors import CheckpointError
from ..schemas.paths import exists

CHECKPOINTS, POLICY, LOCK = "checkpoints", "policy", ".lock"
_STEP = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.+step-\d{8,}\..+")
"""Names of what a killed process leaves: checkpoints half written, half removed, or set aside."""


class Handle:
    """An open file or directory, which may be locked until it is closed."""

    def __init__(self, path: Path, flags: int) -> None:
        self._descriptor: int | None = os.open(path, flags | os.O_CLOEXEC, 0o644)
        _opened.add(self)

    def fileno(self) -> int:
        """The descriptor. Raises ValueError once closed."""
        if self._descriptor is None:
            raise ValueError("the file is closed")
        return self._descriptor

    def close(self) -> None:
        """Close the file, which releases its lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_opened: weakref.WeakSet[Handle] = weakref.WeakSet()


def _release_in_child() -> None:
    """Keep workers that outlive a killed process from holding its locks."""
    for file in list(_opened):
        file.close()


os.register_at_fork(after_in_child=_release_in_child)


def place(run: Path, step: int) -> Path:
    """Return the directory of the checkpoint after `step` updates."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int | None:
    """The number of updates before a checkpoint, by its name; None for a directory of another name."""
    named = _STEP.fullmatch(checkpoint.name)
    return int(named[1]) if named is not None else None


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first. Raises CheckpointError where they cannot be listed."""
    folder = run / CHECKPOINTS
    try:
        found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError as error:
        raise CheckpointError(f"{str(run)!r} is no path ({error}); choose another `output`") from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error
    return [path for _, path in sorted(found)]


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = checkpoints(run)
    return found[-1] if found else None


def point(run: Path) -> None:
    """Let `<run>/policy` be a link to the newest checkpoint. Raises OSError."""
    link = run / POLICY
    while (found := latest(run)) is not None:  # again, where a newer one came meanwhile
        aim = found.relative_to(run)
        if link.is_symlink() and link.readlink() == aim:
            return
        made = run / f".{POLICY}-{uuid.uuid4().hex}"
        made.symlink_to(aim)
        made.replace(link)


def newest(path: Path) -> Path:
    """The newest checkpoint for a link of a run to its policy, which is repaired; any other path as it is.

    A process that is killed between a checkpoint and its link leaves the link behind.
    """
    if not path.is_symlink() or path.name != POLICY or path.readlink().parent != Path(CHECKPOINTS):
        return path
    found = latest(path.parent)
    if found is None:
        return path
    with contextlib.suppress(OSError):  # a run that is read-only is used all the same
        point(path.parent)
    return found


def prune(run: Path, keep: int) -> str:
    """Remove all but the newest `keep` checkpoints, and leave those that somebody reads for the next time.

    A checkpoint loses its name in one step. Gives the reason where one cannot be removed, by which nothing is lost.
    """
    try:
        _prune(run, keep)
    except OSError as error:
        return f"former checkpoints cannot be removed ({error.strerror or error}); the run goes on"
    return ""


def _prune(run: Path, keep: int) -> None:
    for path in checkpoints(run)[:-keep]:
        with Handle(path, os.O_RDONLY | os.O_DIRECTORY) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # this file system has no locks
                pass
            doomed = path.with_name(f".{path.name}.pruned-{platform.node()}-{os.getpid()}")
            path.rename(doomed)
            shutil.rmtree(doomed)


def tidy(run: Path, keep: int) -> None:
    """Remove what killed processes left, and all but the newest `keep` checkpoints, and repair the link.

    Only for the process that holds the run. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        _sweep(run)
        point(run)
        prune(run, keep)


def _sweep(run: Path) -> None:
    folder = run / CHECKPOINTS
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(f".{POLICY}-*"):
        path.unlink(missing_ok=True)


def pin(checkpoint: Path) -> Handle | None:
    """Keep a checkpoint from being pruned until the file given back is closed; None where it is gone already."""
    try:
        file = Handle(checkpoint, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with contextlib.suppress(OSError):  # this file system has no locks
        fcntl.flock(file, fcntl.LOCK_SH)
    if _is(file.fileno(), checkpoint):
        return file
    file.close()
    return None


def usable(run: Path) -> None:
    """Raises CheckpointError where a run's directory is a file, or can be neither made nor written to."""
    there = next(path for path in (run.absolute(), *run.absolute().parents) if exists(path))
    if not there.is_dir():
        raise CheckpointError(f"{there} is a file, so no run can be kept there; choose another `--output`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{there} cannot be written to, so no run can be kept there; choose another `--output`"
        )


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's directory, which is made where it is missing, against other processes that would train there.

    Raises CheckpointError where one does, or where the directory cannot be written to.
    """
    usable(run)
    made = not exists(run)
    lock = run / LOCK
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _exclusive(lock)
    except OSError as error:
        raise CheckpointError(
            f"{run} cannot be written to ({error.strerror or error}); choose another `--output`"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
            if made:
                run.rmdir()  # which is refused unless the run left nothing
        file.close()


def _exclusive(lock: Path) -> Handle:
    """The lock file, locked. Raises CheckpointError where another process has it."""
    while True:
        file = Handle(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file.fileno(), 200).decode(errors="replace").strip() or "another process"
            file.close()
            raise CheckpointError(
                f"{lock.parent} is in use: {owner} trains there; wait for it to end, or choose another `--output`"
            ) from None
        except OSError:  # this file system has no locks
            pass
        if _is(file.fileno(), lock):
            break
        file.close()  # its owner has just removed it
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
    return file


def _is(handle: int, path: Path) -> bool:
    """Return True as long as an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
