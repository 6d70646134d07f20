"""Changes of files that fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITES = ("os.mkdir", "os.rename", "os.symlink", "os.truncate", "open")

_failing: dict[str, Any] = {"at": -1}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _failing["at"] < 0 or event not in WRITES:
        return
    path = arguments[1] if event in ("os.rename", "os.symlink") else arguments[0]
    writing = event != "open" or (
        isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if not writing or str(_failing["below"]) not in os.fsdecode(
        path if isinstance(path, (str, bytes)) else ""
    ):
        return
    _failing["at"] -= 1
    if _failing["at"] < 0:
        _failing["hit"] = f"{event} {path}"
        raise OSError(_failing["number"], os.strerror(_failing["number"]), os.fsdecode(path))


@contextmanager
def failing(at: int, number: int, below: Path) -> Iterator[dict[str, Any]]:
    """The `at`-th change of a file below a directory fails, by an audit hook, which once added stays."""
    if "hooked" not in _failing:
        sys.addaudithook(_hook)
    _failing.update(hooked=True, at=at, number=number, below=below, hit=None)
    try:
        yield _failing
    finally:
        _failing["at"] = -1
