"""Checkpoints of a run: a policy that any transformers code loads, with the state of training beside it.

    checkpoints/step-00002000/
        config.json, model.safetensors, recipe.lock.yaml, policy_shim.py     the policy (averaged weights, if any)
        training.pt                                                          moments, averages and step, for `--resume`
        manifest.json                                                        SHA-256 of all of them, and the step

A checkpoint appears whole, by one rename, after it was read back. Killing the process at any moment leaves
the earlier ones untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...schemas.errors import CheckpointError
from ...schemas.questions.defaults import with_defaults
from ..policy import BasePolicyModel
from ..policy.storage import manifest, saving
from ..policy.storage.saving import STATE
from ..runs import checkpoint_path, checkpoints, latest, point
from . import state as states
from .distributed.sharding import put, unsharded, whole
from .optim.ema import WeightAverage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Properties that a run must share with a checkpoint to resume from it."""

    recipe: dict[str, Any]
    """The resolved recipe."""
    data: str
    """Fingerprint of the dataset as it is used."""
    world_size: int
    """Number of processes."""

    def facts(self, step: int) -> dict[str, Any]:
        """Return the entries of the manifest of the checkpoint after `step` updates."""
        text = json.dumps(self.recipe, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"step": step, "recipe": digest, "data": self.data, "world_size": self.world_size}


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

    All processes of a run call it, so that sharded tensors are gathered; one of them `writes`.

    Raises:
        CheckpointError: if the checkpoint cannot be written; earlier ones stay untouched.
    """
    target = checkpoint_path(run, step)
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
        if not run.is_dir():
            log.warning("%s was removed during the run; it is created again for the checkpoint", run)
        with saving.staged(target) as directory:
            policy.save_pretrained(directory, state_dict=weights)
            _write(state, directory / STATE)
            states.load(directory)
            manifest.write(directory, **identity.facts(step))
    try:
        point(run)
    except OSError as error:
        raise CheckpointError(
            f"{target} is saved, but {run / 'policy'} cannot be pointed at it ({error.strerror or error}); "
            "set the permissions right and go on with `--resume`"
        ) from error
    return target


def _write(state: Mapping[str, Any], path: Path) -> None:
    """Save the state. Raise OSError, also where torch has another error for a full disk."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        with path.open("ab") as file:  # raises the true reason, as long as nothing is freed
            file.write(bytes(1 << 20))
        raise OSError(f"{STATE}: {str(error).splitlines()[0]}") from error


def restore(
    checkpoint: Path,
    policy: BasePolicyModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    identity: Identity,
    *,
    verify: bool = True,
) -> tuple[int, list[str]]:
    """Restore a run from a checkpoint; return the number of updates made, and notes on changes.

    Nothing changes before everything in the checkpoint is checked.

    Raises:
        CheckpointError: for a checkpoint that is damaged, has files that do not belong together, or is of another run.
    """
    facts = manifest.verify(checkpoint) if verify else None
    state = states.load(checkpoint)
    _compare(checkpoint, state["identity"], identity)
    notes = _notes(state, identity)
    states.check(checkpoint, state, policy, optimizer, average)
    if facts is not None and facts.get("step") != state["step"]:
        raise states.damaged(
            checkpoint, f"its step is {state['step']}, and the manifest has {facts.get('step')}"
        )
    found = unsharded(policy).from_pretrained(checkpoint, verify=False).state_dict()
    states.check_weights(checkpoint, found, policy)
    if average is not None:
        average.load_state_dict(state["average"])
        found |= state["weights"]
    for name, value in policy.state_dict().items():
        put(value, found[name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], notes


CHANGEABLE = (
    "output",
    "evaluation",
    "meta",
    "silence",
    "imports",
    "data.path",
    "data.sources.*.path",
    "data.frames",
    "training.steps",
    "training.track",
    "training.log_every",
    "training.save_every",
    "training.save_minutes",
    "training.timeout_minutes",
    "training.keep",
    "training.keep_best",
    "training.early_stop",
    "training.workers",
    "training.cache",
    "training.compile",
    "training.cuda_graph",
    "training.sharding",
    "training.optimizer.states",
)
"""Keys of the recipe that a resumed run may change; the data is compared by content."""
_FORMER = {"training.float8"}
"""Keys of earlier versions that exist no more."""


def _compare(checkpoint: Path, saved: Mapping[str, Any], identity: Identity) -> None:
    if saved["data"] != identity.data:
        raise CheckpointError(
            f"{checkpoint} was trained on other data: the dataset has changed since; "
            "restore it, or start a new run with another `output`"
        )
    if saved["world_size"] != identity.world_size:
        raise CheckpointError(
            f"{checkpoint} was trained by {saved['world_size']} processes and this run has {identity.world_size}; "
            "resume with as many"
        )
    before, now = _flatten(with_defaults(saved["recipe"])), _flatten(identity.recipe)  # options added since
    changed = [
        f"`{key}` was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted((before.keys() | now.keys()) - _FORMER)
        if before.get(key) != now.get(key) and not _is_changeable(key)
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint} belongs to another recipe: {', '.join(changed[:5])}; "
            "undo the change, or start a new run with another `output`"
        )


def _is_changeable(key: str) -> bool:
    steps = key.split(".")
    return any(
        all(a in ("*", b) for a, b in zip(pattern.split("."), steps, strict=False))
        and len(pattern.split(".")) <= len(steps)
        for pattern in CHANGEABLE
    )


def _notes(state: Mapping[str, Any], identity: Identity) -> list[str]:
    """Return a note if the course of the learning rate changes.

    Raise CheckpointError if more steps are done than asked for.
    """
    before, now = state["identity"]["recipe"]["training"]["steps"], identity.recipe["training"]["steps"]
    if now == before:
        return []
    if now < state["step"]:
        raise CheckpointError(
            f"`training.steps` is {now}, and the run has taken {state['step']} already; set it to more, or take an "
            "earlier checkpoint"
        )
    schedule = identity.recipe["training"]["schedule"]["type"]
    change = f"`training.steps` was {before} and is {now}"
    if schedule == "constant":
        return [f"{change}: the rate stays"]
    course = f"the rate follows the {schedule} schedule of {now} steps, while those before followed that of {before}"
    return [f"{change}: from step {state['step']} on {course}"]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{prefix}.{index}", item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {k: v for key, item in pairs for k, v in _flatten(item, key).items()}


__all__ = ["CHANGEABLE", "STATE", "Identity", "checkpoint_path", "checkpoints", "latest", "restore", "save"]
