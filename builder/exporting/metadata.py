"""The description beside an exported policy: what goes in, what comes out, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...components.features import chunk_size
from ...schemas.specs import Spec
from ..data.frames.digests import plain_digest
from ..data.signals import Signals
from ..provenance import versions
from ..saved_policy import SavedPolicy
from .program import Program

NAME = "policy.json"
BATCH = "batch"


def describe(
    saved: SavedPolicy, program: Program, inputs: dict[str, Tensor], *, form: str, file: Path, free: bool
) -> dict[str, Any]:
    """Return the description of an exported policy, as JSON values.

    Args:
        saved: The policy on disk.
        program: What was exported.
        inputs: Inputs of an example.
        form: Name of the format.
        file: The exported file.
        free: Whether its batch size is free.
    """
    policy = program.policy
    signals = {name: Signals.of_policy(policy.content, name) for name in policy.robots.names or (None,)}
    own = signals[next(iter(signals))]
    horizon, width = chunk_size({key: Spec.from_json(spec) for key, spec in policy.content["specs"].items()})
    batch = BATCH if free else 1

    def entry(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
        found = {"shape": [batch, *shape], "dtype": str(dtype).removeprefix("torch.")}
        return found | ({"names": list(own.names[key])} if key in own.names and len(signals) == 1 else {})

    return {
        "format": 1,
        "kind": form,
        "file": file.name,
        "sha256": plain_digest(file),
        "recipe": policy.content["recipe"].get("name", ""),
        "checkpoint": {path.name: plain_digest(path) for path in weights_of(saved.directory)},
        "inputs": {key: entry(key, tuple(value.shape[1:]), value.dtype) for key, value in inputs.items()},
        "noise": {key: {"noise": "normal", "uniform": "uniform"}[key] for key in program.noise},
        "outputs": {"action": entry("action", (horizon, width), torch.float32)},
        "observation_steps": policy.observation_steps(),
        "present": policy.present,
        "execute": policy.execute,
        "ensemble": policy.ensemble,
        "fps": own.fps,
        "robots": {str(name): held.to_json() for name, held in signals.items() if name is not None},
        "versions": versions("policysmith", "torch"),
    }


def weights_of(directory: Path) -> list[Path]:
    """Return the files with the weights of a checkpoint."""
    return sorted(directory.glob("model*.safetensors"))


__all__ = ["BATCH", "NAME", "describe", "weights_of"]
