"""The directory of a run: the names of its files, its checkpoints, and the locks that guard them.

    <run>/policy                        link to the newest checkpoint
          best                          link to the best checkpoint, with `training.keep_best`
          checkpoints/step-00002000/    complete from the moment it has this name
          run.json                      what the run is
          recipe.yaml                   its recipe, which trains the same again from anywhere
          report.html                   its curves, drawn while it goes
          log.jsonl, tensorboard/       its losses and speed
          tracking.json                 its remote runs, by tracker
          profile/                      the time of its steps, with `--profile`
          .lock                         held by the process that trains here

The kernel releases locks when a process ends, however it ends. A file system without locks leaves runs
unguarded.
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

CHECKPOINTS, POLICY, BEST, LOCK = "checkpoints", "policy", "best", ".lock"
DESCRIPTION, RECIPE, REPORT, LOG, TENSORBOARD, TRACKING, PROFILE = (
    "run.json", "recipe.yaml", "report.html", "log.jsonl", "tensorboard", "tracking.json", "profile",
)  # fmt: skip
_STEP = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.+step-\d{8,}\..+")
"""Names that a killed process leaves behind: checkpoints half written, half removed, or set aside."""


class Handle:
    """An open file or directory, which may be locked until it is closed."""

    def __init__(self, path: Path, flags: int) -> None:
        self._descriptor: int | None = os.open(path, flags | os.O_CLOEXEC, 0o644)
        _opened.add(self)

    def fileno(self) -> int:
        """Return the descriptor. Raise ValueError once closed."""
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


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the directory of the checkpoint after `step` updates."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def run_of(checkpoint: Path) -> Path | None:
    """Return the run that a checkpoint belongs to, by its path, or None for any other directory."""
    return checkpoint.parents[1] if checkpoint.parent.name == CHECKPOINTS else None


def step_of(checkpoint: Path) -> int | None:
    """Return the number of updates before a checkpoint, or None for a directory of another name."""
    named = _STEP.fullmatch(checkpoint.name)
    return int(named[1]) if named is not None else None


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first.

    Raise CheckpointError if they cannot be listed.
    """
    folder = run / CHECKPOINTS
    try:
        found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError as error:
        raise CheckpointError(f"{str(run)!r} is not a path ({error}); choose another `output`") from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error
    return [path for _, path in sorted(found)]


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, if any."""
    found = checkpoints(run)
    return found[-1] if found else None


def point(run: Path) -> None:
    """Point `<run>/policy` at the newest checkpoint."""
    link = run / POLICY
    while (found := latest(run)) is not None:  # again if a newer one appeared meanwhile
        aim = found.relative_to(run)
        if link.is_symlink() and link.readlink() == aim:
            return
        _replace_link(link, aim)


def point_best(run: Path, step: int) -> None:
    """Point `<run>/best` at the checkpoint after `step` updates, if that still exists."""
    aim = checkpoint_path(run, step)
    if aim.is_dir():
        _replace_link(run / BEST, aim.relative_to(run))


def write_whole(path: Path, text: str) -> None:
    """Write a file in a directory that this process holds, whole or not at all."""
    made = path.with_name(f".{path.name}")
    made.write_text(text, encoding="utf-8")
    made.replace(path)


def _replace_link(link: Path, aim: Path) -> None:
    made = link.with_name(f".{link.name}-{uuid.uuid4().hex}")
    made.symlink_to(aim)
    made.replace(link)


def newest(path: Path) -> Path:
    """Return the newest checkpoint for a run's link to its policy, and repair the link.

    Return any other path itself. A process that is killed between writing a checkpoint and its link
    leaves an old link.
    """
    if not os.path.islink(path) or path.name != POLICY or path.readlink().parent != Path(CHECKPOINTS):  # noqa: PTH114
        return path
    found = latest(path.parent)
    if found is None:
        return path
    with contextlib.suppress(OSError):  # a read-only run can be used too
        point(path.parent)
    return found


def prune(run: Path, keep: int) -> str:
    """Remove all but the newest `keep` checkpoints and the best; return the reason if one cannot be removed.

    Checkpoints being read are kept. A checkpoint loses its name in one step.
    """
    try:
        _prune(run, keep)
    except OSError as error:
        return f"old checkpoints cannot be removed ({error.strerror or error}); the run continues"
    return ""


def _prune(run: Path, keep: int) -> None:
    best = (run / BEST).resolve()
    for path in checkpoints(run)[:-keep]:
        if path.resolve() == best:
            continue
        with Handle(path, os.O_RDONLY | os.O_DIRECTORY) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:  # a file system without locks
                pass
            doomed = path.with_name(f".{path.name}.pruned-{platform.node()}-{os.getpid()}")
            path.rename(doomed)
            shutil.rmtree(doomed)


def tidy(run: Path, keep: int) -> None:
    """Remove what killed processes left and all but the newest `keep` checkpoints, and repair the link.

    Only the process that holds the run may call it. It skips what cannot be removed.
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
    for name in (POLICY, BEST):
        for path in run.glob(f".{name}-*"):
            path.unlink(missing_ok=True)


def pin(checkpoint: Path) -> Handle | None:
    """Return a handle that keeps a checkpoint from being pruned until it is closed, or None if it is gone."""
    try:
        file = Handle(checkpoint, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_SH)
    if _is(file.fileno(), checkpoint):
        return file
    file.close()
    return None


def check_claimable(run: Path, *, alone: bool = True) -> None:
    """Raise CheckpointError if no run can be written to a directory.

    If this process trains `alone`, also raise CheckpointError if another one is training there.
    """
    try:
        run.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{str(run)!r} is not a usable path ({reason}); choose another `--output`"
        ) from error
    there = next(path for path in (run.absolute(), *run.absolute().parents) if exists(path))
    dangling = next((path for path in (run.absolute(), *run.absolute().parents) if _is_dangling(path)), None)
    if dangling is not None:
        raise CheckpointError(
            f"{dangling} is a link to {dangling.readlink()}, which does not exist; create it, remove the link, or choose "
            "another `--output`"
        )
    if not there.is_dir():
        raise CheckpointError(f"{there} is a file, so it cannot hold a run; choose another `--output`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{there} cannot be written to, so it cannot hold a run; choose another `--output`"
        )
    link = run / POLICY
    if exists(link) and not link.is_symlink():
        raise CheckpointError(
            f"{link} is not a link, but a run keeps its link to the newest checkpoint there; move it away, or choose "
            "another `--output`"
        )
    for name in (DESCRIPTION, RECIPE, REPORT, LOG, TRACKING, LOCK):
        if exists(run / name) and not (run / name).is_file():
            raise CheckpointError(
                f"{run / name} is not a regular file; move it away, or choose another `--output`"
            )
    if alone and exists(run / LOCK):
        with Handle(run / LOCK, os.O_RDONLY) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _in_use(run, file) from None
            except OSError:  # a file system without locks
                pass


def _is_dangling(path: Path) -> bool:
    return os.path.islink(path) and not exists(path)  # noqa: PTH114  (`Path.is_symlink` raises for a very long name)


def _in_use(run: Path, lock: Handle) -> CheckpointError:
    """Return the error for a run whose lock another process holds."""
    owner = os.pread(lock.fileno(), 200, 0).decode(errors="replace").strip() or "another process"
    return CheckpointError(
        f"{run} is in use: {owner} is training there; wait for it to end, or choose another `--output`"
    )


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's directory against other processes while the context is active; create it if it is missing.

    Raises:
        CheckpointError: Another process holds it, or it cannot be written to.
    """
    check_claimable(run)
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
                run.rmdir()  # fails unless the run left nothing
        file.close()


def _exclusive(lock: Path) -> Handle:
    """Return the lock file, locked. Raise CheckpointError if another process holds it."""
    while True:
        file = Handle(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raised = _in_use(lock.parent, file)
            file.close()
            raise raised from None
        except OSError:  # a file system without locks
            pass
        if _is(file.fileno(), lock):
            break
        file.close()  # its owner has just removed it
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
    return file


def _is(handle: int, path: Path) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
