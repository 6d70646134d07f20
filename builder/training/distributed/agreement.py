"""Agreement of all processes of a run on its checkpoint, whatever their disks hold."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ....schemas.errors import CheckpointError
from ... import runs

_SMALL = 1 << 20
"""Bytes up to which a file is hashed whole; of a larger one, both ends and the size are hashed."""


def starting_point(run: Path, accelerator: Accelerator) -> Path | None:
    """Return the checkpoint that the main process resumes from, None if it finds none. All processes call it.

    Raises:
        CheckpointError: in all processes, if one of them does not have a checkpoint of the same step and content.
    """
    own = runs.latest(run)
    if accelerator.num_processes == 1:
        return own
    (name,) = broadcast_object_list([own.name if own is not None else None])
    found = own if name is None else next((p for p in runs.checkpoints(run) if p.name == name), None)
    held = None if found is None else (found.name, _digest(found))
    _compare(run, gather_object([(held, f"process {accelerator.process_index} on {socket.gethostname()}")]))
    return found


def refuse_existing(run: Path, accelerator: Accelerator) -> None:
    """Raise CheckpointError, in all processes, if one of them finds a run in the directory."""
    if any(gather_object([runs.latest(run) is not None])):
        raise CheckpointError(
            f"{run} already holds a run; continue it with `--resume`, choose another `--output`, or remove it"
        )


def _compare(run: Path, gathered: list[tuple[Any, str]]) -> None:
    (main, name), *others = gathered
    different = [(held, who) for held, who in others if held != main]
    if not different:
        return
    held, who = different[0]
    theirs = "none" if held is None else held[0]
    ours = "none" if main is None else main[0]
    differ = f"has {theirs}" if theirs != ours else f"has another {theirs}"
    raise CheckpointError(
        f"processes would not resume from the same checkpoint of {run}: {name} has {ours}, and {who} {differ}; "
        "put the run on storage that all machines share, or copy the checkpoint to each, or remove it from all"
    )


def _digest(folder: Path) -> str:
    """Hash names, sizes and content of a checkpoint's files; of large ones, the first and last part."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as stream:
            found.update(stream.read(_SMALL))
            if size > _SMALL:
                stream.seek(max(size - _SMALL, _SMALL), os.SEEK_SET)
                found.update(stream.read())
    return found.hexdigest()
