"""The directory of feature tables: locks, free space, damage, and reasons why a table cannot be stored."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from ....schemas.errors import DatasetError
from ...data.frames.cache import locked
from .table import DamagedTableError, UnlikeRowsError, open_rows

T = TypeVar("T")
_SPARE = 1 << 30
"""Bytes to leave free on the disk."""


class ObstacleError(Exception):
    """Raised when features cannot be stored, with the reason."""


def attempt(step: Callable[[], T]) -> tuple[T | None, str]:
    """Return the result of a step, and the reason if it failed."""
    try:
        return step(), ""
    except OSError as error:
        return None, f"its features cannot be written ({error.strerror or error})"
    except UnlikeRowsError as error:
        return None, f"its features differ in shape from batch to batch ({error})"
    except (ObstacleError, DatasetError, DamagedTableError) as error:
        return None, str(error)


def remove_if_damaged(directory: Path) -> str | None:
    """Return the damage of a table, after removing it; an empty text if it is whole, None if there is no table."""
    if not directory.exists():
        return None
    try:
        open_rows(directory)
    except DamagedTableError as damage:
        shutil.rmtree(directory)
        return str(damage)
    return ""


def work_directory(root: Path, key: str, stack: ExitStack) -> Path:
    """Create a directory for a table in progress, and hold its lock until the stack closes."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stack.enter_context(locked(root / f"{key}.lock")):
        for abandoned in root.glob(f"{key}.*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
    stack.callback(shutil.rmtree, work, ignore_errors=True)
    return work


def check_room(root: Path, size: int) -> None:
    """Raise ObstacleError if features of so many bytes would not fit on the disk, or not into memory."""
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free - _SPARE
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for room, name in ((free, f"on the disk of {root}"), (memory, "in half of this machine's memory")):
        if size > room:
            raise ObstacleError(
                f"its features take {size / 1e9:,.1f} GB, and {name} there are {max(room, 0) / 1e9:,.1f} GB"
            )
