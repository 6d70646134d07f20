"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` or `~user` replaced by that home; unchanged where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (`Path.expanduser` raises for an unknown user)


def exists(path: Path) -> bool:
    """Return whether there is anything at the path; False for a name that no file can have, such as a very long one."""
    return os.path.exists(path)  # noqa: PTH110  (`Path.exists` raises for such a name)
