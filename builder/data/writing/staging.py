"""Hidden folders in which datasets are written, and moved into place when they are complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from ....schemas.errors import DatasetError


def require_empty(root: Path) -> None:
    """Raise DatasetError if `root` exists and is not an empty directory."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root} exists and is not empty; name a new directory")


def stage(root: Path) -> Path:
    """Return a new hidden folder beside `root`, or raise DatasetError if `root` is not empty."""
    require_empty(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    return Path(mkdtemp(prefix=f".{root.name}.", dir=root.parent))


def publish(folder: Path, root: Path) -> None:
    """Move a complete folder to `root`, or raise DatasetError if `root` is no longer empty."""
    folder.chmod(0o755)
    require_empty(root)
    folder.replace(root)


@contextmanager
def staged(root: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `root` at the end, and vanishes after an error."""
    folder = stage(root)
    try:
        yield folder
        publish(folder, root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["publish", "require_empty", "stage", "staged"]
