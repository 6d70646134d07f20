"""Checkpoints of a run: a policy that any transformers code loads, with the state of training beside it.

    checkpoints/step-00002000/
        config.json, model.safetensors, recipe.lock.yaml, policy_shim.py     the policy (averaged weights, if any)
        training.pt                                                          what only `--resume` needs

A checkpoint appears whole, by one rename, after it was read back. Killing the process at any moment leaves the
former ones as they were.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...schemas.errors import CheckpointError
from ..policy import BasePolicyModel, saving
from .ema import WeightAverage
from .sharding import put, unsharded, whole

STATE = "training.pt"
_STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Identity:
    """What a run must share with a checkpoint to resume from it."""

    recipe: dict[str, Any]
    """The resolved recipe."""
    data: str
    """Fingerprint of the dataset as it is used."""
    world_size: int
    """Processes."""


def save(
    run: Path,
    step: int,
    policy: BasePolicyModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    identity: Identity,
    *,
    writes: bool = True,
) -> Path:
    """Write the checkpoint after `step` updates and point `<run>/policy` at it.

    All processes of a run call it, so that what is spread over them comes together; one of them `writes`.
    """
    target = place(run, step)
    state: dict[str, Any] = whole(
        {
            "step": step,
            "optimizer": optimizer.state_dict(),
            "average": average.state_dict() if average is not None else None,
            "weights": average.weights() if average is not None else None,
            "identity": {"recipe": identity.recipe, "data": identity.data, "world_size": identity.world_size},
        }
    )
    with average.applied() if average is not None else contextlib.nullcontext():
        weights = whole(policy.state_dict())
        if not writes:
            return target
        with saving.staged(target) as directory:
            policy.save_pretrained(directory, state_dict=weights)
            torch.save(state, directory / STATE)
            load_state(directory)
    link = run / f".policy-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(target.relative_to(run))
    link.replace(run / "policy")
    return target


def place(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The state of training in a checkpoint. Raises CheckpointError where it is missing or damaged."""
    path = checkpoint / STATE
    if not path.exists():
        raise CheckpointError(f"{path} is missing: {checkpoint} can be used, but not resumed from")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); remove {checkpoint} to resume from the one before"
        ) from error
    return state


def restore(
    checkpoint: Path,
    policy: BasePolicyModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    identity: Identity,
) -> int:
    """Continue where a checkpoint left off; gives the number of updates made. Raises CheckpointError."""
    state = load_state(checkpoint)
    _compare(checkpoint, state["identity"], identity)
    weights = unsharded(policy).from_pretrained(checkpoint).state_dict()
    if average is not None:
        average.load_state_dict(state["average"])
        weights |= state["weights"]
    for name, value in policy.state_dict().items():
        put(value, weights[name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = checkpoints(run)
    return found[-1] if found else None


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    return sorted(p for p in folder.iterdir() if _STEP.fullmatch(p.name)) if folder.is_dir() else []


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in checkpoints(run)[:-keep]:
        shutil.rmtree(path)


_FREE = {
    "output", "evaluation", "meta", "imports",
    "training.log_every", "training.save_every", "training.save_minutes", "training.timeout_minutes", "training.keep", "training.workers", "training.cache", "training.compile", "training.cuda_graph",
    "training.sharding", "training.float8", "training.optimizer.states",
}  # fmt: skip


def _compare(checkpoint: Path, saved: Mapping[str, Any], identity: Identity) -> None:
    if saved["data"] != identity.data:
        raise CheckpointError(
            f"{checkpoint} was trained on other data: the dataset has changed since. "
            "Restore it, or start a new run with another `output`"
        )
    if saved["world_size"] != identity.world_size:
        raise CheckpointError(
            f"{checkpoint} was trained by {saved['world_size']} processes and this run has {identity.world_size}; "
            "resume with as many"
        )
    before, now = _flatten(saved["recipe"]), _flatten(identity.recipe)
    free = set(_FREE)
    if now.get("training.schedule.type") == "constant":
        free.add("training.steps")
    changed = [
        f"`{key}` was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == f or key.startswith(f"{f}.") for f in free)
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint} belongs to another recipe: {'; '.join(changed[:5])}. "
            "Undo the change, or start a new run with another `output`"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{prefix}.{index}", item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {k: v for key, item in pairs for k, v in _flatten(item, key).items()}
