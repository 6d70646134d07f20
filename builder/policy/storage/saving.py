"""Crash-safe saving: a directory holds a whole policy, or nothing that could be taken for one.

A directory that holds nothing else is replaced in one step. In any other, such as the working directory,
files are replaced one by one; config.json, without which there is no policy, is removed first and written
last.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ....schemas.errors import CheckpointError
from ....schemas.paths import text_of
from . import manifest

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_CURE = "the checkpoint is incomplete; use another one of the run, or save the policy again"
CONFIG, RECIPE, ASSETS = "config.json", "recipe.yaml", "collator"
STATE = "training.pt"
"""State of training, which only `--resume` needs."""
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_OTHERS = {CONFIG, RECIPE, "recipe.lock.yaml", "policy_shim.py", ASSETS, manifest.NAME}
_STAGING = ".staging-"

SHIM = '''"""Classes of the policy, for `AutoModel.from_pretrained(..., trust_remote_code=True)`."""

try:
    from policysmith.builder.policy import RecipeConfig, RecipePolicy
except ImportError as error:
    raise ImportError("this policy needs policysmith: run `pip install policysmith`") from error

__all__ = ["RecipeConfig", "RecipePolicy"]
'''
"""The `policy_shim.py` of a composed policy."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Provide a directory whose files replace those in `target` if the block succeeds.

    They replace it in one step if `target` is new, empty, or holds only a former checkpoint. Otherwise (also
    for a mount point, the working directory, or a parent that is read-only) they replace it file by file:
    other files stay untouched, and config.json is absent while old and new files are mixed.

    Raises:
        CheckpointError: Something cannot be written, there or in the block.
    """
    if target.is_file():
        raise CheckpointError(f"{target} is a file; name a directory")
    if _STAGING in target.name:  # a save within a save: the outer one reports its errors
        with _staged(target) as directory:
            yield directory
        return
    try:
        with _staged(target) as directory:
            yield directory
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(
            f"{target} cannot be written ({reason}), and earlier saves are untouched; free space or fix its permissions, "
            "then save again, or continue with `--resume`"
        ) from error


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = not target.exists() or _replaceable(target)
    staging = _staging(target if replaced else target / "checkpoint")
    staging.mkdir()
    try:
        yield staging
        for path in _files(staging):
            _sync(path)
        if not replaced:
            _fill(target, staging)
        elif target.is_dir() and any(target.iterdir()):
            _exchange(staging, target)
        else:
            staging.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replaceable(target: Path) -> bool:
    """Return whether replacing `target` loses nothing and leaves no process in a deleted directory."""
    with contextlib.suppress(FileNotFoundError):
        if Path.cwd().is_relative_to(target):
            return False
    if target.is_mount() or not os.access(target.parent, os.W_OK):
        return False
    held = {path.name for path in target.iterdir()}
    return not held or (CONFIG in held and all(n in _OTHERS or _WEIGHTS.fullmatch(n) for n in held))


def _fill(target: Path, staging: Path) -> None:
    """Replace a checkpoint file by file, and leave other files alone."""
    (target / CONFIG).unlink(missing_ok=True)
    _sync(target)
    for path in target.iterdir():
        if _WEIGHTS.fullmatch(path.name):
            path.unlink()
    for path in (target / RECIPE, *_files(target / ASSETS)):
        if path.is_file() and not (staging / path.relative_to(target)).exists():
            log.warning(
                "%s belongs to another policy than the one saved beside it, but will be loaded with it", path
            )
    for path in sorted(_files(staging), key=lambda path: path == staging / CONFIG):
        place = target / path.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path == staging / CONFIG:
            _sync(target)
        path.replace(place)
    _sync(target)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _staging(target: Path) -> Path:
    """Return a free directory name beside `target`, and remove leftovers of dead processes."""
    stem = f".{target.name}{_STAGING}{platform.node()}-"
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


def _exchange(staging: Path, target: Path) -> None:
    """Swap two directories: in one step on Linux, elsewhere in two steps, with the former one set aside."""
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
    """Read back config and weights. Raise CheckpointError if a file is missing, empty or truncated."""
    read_json(directory / CONFIG)
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


def check_directory(path: Any, subfolder: str | None = None, *, digests: bool = False) -> None:
    """Raise CheckpointError for a local directory without a complete checkpoint; accept a hub id.

    With `digests`, also verify the files of the policy against its manifest, if it has one.
    """
    directory = Path(str(path))
    if directory.is_dir():
        directory /= subfolder or ""
        if not (directory / CONFIG).exists():
            raise CheckpointError(
                f"{directory} holds no config.json; name the directory of a policy, or save it again if saving was "
                "interrupted"
            )
        verify(directory)
        if digests:
            manifest.verify(directory, without=[STATE])
    elif _former(directory).is_dir():
        raise CheckpointError(
            f"{directory} was being replaced when its process ended; rename {_former(directory)} to {directory.name}"
        )
    elif directory.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") > 1:
        raise CheckpointError(f"{directory} does not exist; name the directory of a policy")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file. Raise CheckpointError if the file holds none."""
    try:
        value = json.loads(text_of(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {_CURE}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {_CURE}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (not a mapping); {_CURE}")
    return value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
