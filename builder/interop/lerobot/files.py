"""Directory of a LeRobot policy: config.json, model.safetensors, and since 0.4 processors with statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....schemas.errors import CheckpointError
from ...data.statistics import Statistics
from ...policy.storage.saving import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
_SCAFFOLD = ("rename_observations_processor", "to_batch_processor", "device_processor", NORMALIZER)
_OLD = ("normalize_inputs", "normalize_targets", "unnormalize_outputs")


@dataclass(frozen=True)
class Checkpoint:
    """Contents of such a directory."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    statistics: Statistics
    """Flat values by key and name (`mean`, `std`, `min`, `max`, ...)."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Preprocessor steps beyond those that move and normalize a batch, in order."""


def read(directory: Path) -> Checkpoint:
    """Read a policy, or raise CheckpointError for missing or damaged files."""
    config = read_json(directory / CONFIG)
    if "type" not in config:
        raise CheckpointError(f"{directory / CONFIG} has no `type`; name the directory of a LeRobot policy")
    weights = _tensors(directory / WEIGHTS)
    if not (directory / PREPROCESSOR).exists():
        return Checkpoint(config, *_inside(weights, config))
    steps = read_json(directory / PREPROCESSOR)["steps"]
    statistics: Statistics = {}
    others = []
    for step in steps:
        name, options = step.get("registry_name"), step.get("config", {})
        if name == NORMALIZER and "state_file" in step:
            for key, value in _tensors(directory / step["state_file"]).items():
                owner, _, statistic = key.rpartition(".")
                statistics.setdefault(owner, {})[statistic] = value.float().flatten().tolist()
        if name not in _SCAFFOLD or options.get("rename_map"):
            others.append(step)
    return Checkpoint(config, weights, statistics, others)


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a policy with both processors, or raise CheckpointError if the directory is not empty."""
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory} is not empty; name a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    _write_json(directory / CONFIG, config)
    save_file(checkpoint.weights, directory / WEIGHTS)
    inputs, outputs = config["input_features"], config["output_features"]
    rules = {"eps": 1e-8, "norm_map": config["normalization_mapping"]}
    device: dict[str, Any] = {
        "registry_name": "device_processor",
        "config": {"device": "cpu", "float_dtype": None},
    }
    normalizer: dict[str, Any] = {
        "registry_name": NORMALIZER,
        "config": {**rules, "features": {**inputs, **outputs}},
    }
    before: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        normalizer,
        *checkpoint.steps,
    ]
    after: list[dict[str, Any]] = [
        {"registry_name": UNNORMALIZER, "config": {**rules, "features": outputs}},
        device,
    ]
    shapes = {key: (-1, 1, 1) if feature["type"] == "VISUAL" else (-1,) for key, feature in inputs.items()}
    tensors = {
        f"{key}.{name}": torch.tensor(values).reshape(shapes.get(key, (-1,)))
        for key, held in checkpoint.statistics.items()
        for name, values in held.items()
    }
    for file, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        stem = file.removesuffix(".json")
        for index, step in enumerate(steps):
            if step["registry_name"] in (NORMALIZER, UNNORMALIZER):
                state_file = f"{stem}_step_{index}_{step['registry_name']}.safetensors"
                save_file(tensors, directory / state_file)
                step["state_file"] = state_file
        _write_json(directory / file, {"name": stem, "steps": steps})


def _inside(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], Statistics]:
    """Split weights from statistics for a policy before 0.4, which normalized in the network."""
    keys = {key.replace(".", "_"): key for key in (*config["input_features"], *config["output_features"])}
    kept: dict[str, Tensor] = {}
    statistics: Statistics = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".buffer_")
        if part not in _OLD:
            kept[name] = value
            continue
        key, _, statistic = rest.rpartition(".")
        if key not in keys:
            raise CheckpointError(f"`{name}` has statistics of a feature that config.json lacks")
        statistics.setdefault(keys[key], {})[statistic] = value.float().flatten().tolist()
    return kept, statistics


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise CheckpointError(f"{path} is missing; name a directory that LeRobot's `save_pretrained` wrote")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n")


__all__ = ["Checkpoint", "read", "write"]
