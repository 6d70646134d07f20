"""The manifest of a checkpoint: size and SHA-256 of every file, which binds the files to one another.

    manifest.json   {"format": 1, "files": {"model.safetensors": {"bytes": ..., "sha256": ...}, ...},
                     "step": ..., "recipe": ..., "data": ..., "seal": ...}

The manifest is written last. `seal` is the SHA-256 of its own content. A directory without a manifest, as
other programs write it, is accepted; one whose manifest does not match is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ....schemas.errors import CheckpointError
from ....schemas.paths import text_of
from ...data.frames.cache import cache_root
from ...data.frames.digests import digest, plain_digest

NAME = "manifest.json"
_FORMAT = 1
_LARGE = 1 << 24
"""Size in bytes from which the digest of a file is cached."""
_CURE = (
    "use another checkpoint of the run; if you changed it on purpose, remove {name} or load with `verify=False` "
    "(on the command line `--no-verify`)"
)


def write(directory: Path, **facts: Any) -> None:
    """Write or extend the manifest of a directory.

    Nothing else may write to the directory meanwhile. Files that the present manifest lists are not read
    again. `facts` are JSON values to store beside the files.
    """
    path = directory / NAME
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known: dict[str, Any] = content.get("files", {})
    names = [
        name
        for file in sorted(directory.rglob("*"))
        if file.is_file() and (name := file.relative_to(directory).as_posix()) not in (*known, NAME)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = dict(zip(names, threads.map(lambda name: _entry(directory / name), names), strict=True))
    body = {**content, **facts, "format": _FORMAT, "files": dict(sorted({**known, **found}.items()))}
    body.pop("seal", None)
    path.write_text(json.dumps({**body, "seal": _seal(body)}, indent=1) + "\n")


def read(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, or None if it has none. Raise CheckpointError if it is damaged."""
    path = directory / NAME
    try:
        content = json.loads(text_of(path))
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({_brief(error)}); {_cure(path)}") from error
    if not isinstance(content, dict) or content.pop("seal", None) != _seal(content):
        raise CheckpointError(f"{path} is damaged (its content does not match its seal); {_cure(path)}")
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')}, but this version reads {_FORMAT}; update policysmith"
        )
    return content


def verify(
    directory: Path, *, without: Collection[str] = (), partial: bool = False
) -> Mapping[str, Any] | None:
    """Verify the files of a directory against its manifest, and return it, or None if it is absent.

    Args:
        directory: Directory of the policy.
        without: Names of files to skip.
        partial: Skip files that are missing.

    Raises:
        CheckpointError: A file is missing, or is not the one that was saved.
    """
    content = read(directory)
    if content is None:
        return None
    listed = {name: entry for name, entry in content["files"].items() if name not in without}
    if partial:
        listed = {name: entry for name, entry in listed.items() if (directory / name).exists()}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for complaint in threads.map(lambda item: _complaint(directory, *item), listed.items()):
            if complaint:
                raise CheckpointError(complaint)
    return content


def _complaint(directory: Path, name: str, entry: Mapping[str, Any]) -> str:
    path = directory / name
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return _differs(path, f"it has {size:,} bytes instead of {entry['bytes']:,}")
        found = digest(path, memory=cache_root() / "digests") if size >= _LARGE else plain_digest(path)
    except FileNotFoundError:
        return f"{path} is missing; {_cure(directory / NAME)}"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error}); {_cure(directory / NAME)}"
    if found != entry["sha256"]:
        return _differs(path, f"its SHA-256 is {found[:12]}… instead of {entry['sha256'][:12]}…")
    return ""


def _differs(path: Path, how: str) -> str:
    return f"{path} is damaged or from another save: {how} in {NAME}; {_cure(path.with_name(NAME))}"


def _cure(manifest: Path) -> str:
    return _CURE.format(name=manifest.name)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": plain_digest(path)}


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _brief(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
