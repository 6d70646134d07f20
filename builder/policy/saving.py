"""Directories that hold a whole policy or nothing."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...schemas.errors import CheckpointError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_CURE = "the checkpoint is not whole; use another one of the run, or save the policy again"
_OWN = re.compile(
    r"config\.json|model.*\.safetensors(\.index\.json)?|recipe(\.lock)?\.yaml|policy_shim\.py|collator"
)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A directory that takes the place of `target` in one step when the block ends well, and vanishes when not.

    Whatever else `target` holds stays; files of a former checkpoint go. Only a `target` whose parent cannot be
    written to, such as a mounted volume, is filled file by file.
    """
    if target.is_file():
        raise CheckpointError(f"{target} is a file; name a directory")
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    fixed = target.is_dir() and (target.is_mount() or not os.access(target.parent, os.W_OK))
    staging = _staging(target / "checkpoint" if fixed else target)
    staging.mkdir()
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            if path.is_file():
                _sync(path)
        if fixed:
            for path in sorted(p for p in staging.rglob("*") if p.is_file()):
                place = target / path.relative_to(staging)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        elif target.is_dir() and any(target.iterdir()):
            _keep_others(target, staging)
            _exchange(staging, target)
        else:
            staging.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging(target: Path) -> Path:
    """A free directory name beside `target`; removes what processes of this machine that are gone have left."""
    stem = f".{target.name}.staging-{platform.node()}-"
    for left in target.parent.glob(f"{glob.escape(stem)}*"):
        owner = left.name.removeprefix(stem)
        if owner.isdigit() and (int(owner) == os.getpid() or not _alive(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
    return target.parent / f"{stem}{os.getpid()}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _keep_others(old: Path, new: Path) -> None:
    """Link what a directory holds besides a checkpoint into its successor."""
    for entry in old.iterdir():
        place = new / entry.name
        if _OWN.fullmatch(entry.name) or place.exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, place, symlinks=True, copy_function=_link)
        else:
            _link(entry, place)


def _link(source: str | Path, place: str | Path) -> None:
    try:
        os.link(source, place, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, place, follow_symlinks=False)


def _exchange(staging: Path, target: Path) -> None:
    """Swap two directories: in one step on Linux, elsewhere in two, with the former one set aside between them."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is not None:
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if renameat2(here, os.fsencode(staging), here, os.fsencode(target), swap) == 0:
            return
    former = _former(target)
    target.rename(former)
    staging.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def _former(target: Path) -> Path:
    return target.parent / f".{target.name}.former"


def verify(directory: Path) -> None:
    """Read back config and weights. Raises CheckpointError for what is missing, empty or cut short."""
    read_json(directory / "config.json")
    index = directory / WEIGHTS[1]
    names = [WEIGHTS[0]]
    if not (directory / WEIGHTS[0]).exists() and index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{index} lists no weights; {_CURE}")
        names = sorted(set(shards.values()))
    for name in names:
        path = directory / name
        if not path.exists():
            raise CheckpointError(f"{path} is missing; {_CURE}")
        try:
            with safe_open(path, "pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); {_CURE}") from error


def check_directory(path: Any) -> None:
    """Refuse a local directory that holds no whole checkpoint; a hub id passes. Raises CheckpointError."""
    directory = Path(str(path))
    if directory.is_dir():
        if not (directory / "config.json").exists():
            raise CheckpointError(f"{directory} holds no config.json; name the directory of a policy")
        verify(directory)
    elif _former(directory).is_dir():
        raise CheckpointError(
            f"{directory} was being replaced when its process ended; rename {_former(directory)} to {directory.name}"
        )
    elif directory.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") > 1:
        raise CheckpointError(f"{directory} does not exist; name the directory of a policy")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises CheckpointError where there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {_CURE}") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {_CURE}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (it holds no mapping); {_CURE}")
    return value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
