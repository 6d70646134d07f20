"""File paths as users write them."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` or `~user` expanded; unchanged if the user is unknown."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (`Path.expanduser` raises for an unknown user)


def exists(path: Path) -> bool:
    """Return whether the path exists; False for an impossible name, such as a very long one."""
    return os.path.exists(path)  # noqa: PTH110  (`Path.exists` raises for such a name)


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, sorted; none if it does not exist or cannot be read."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208  (a path that is no directory has none)
    except OSError:
        return []


def text_of(path: Path) -> str:
    """Return the text of a file. Raise OSError for a pipe or a device, which might never end, and ValueError for bytes."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return path.read_text(encoding="utf-8")


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file at once, its permissions kept; through a link, that of its target."""
    path = path.resolve()
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.chmod(path.stat().st_mode)
    new.replace(path)
