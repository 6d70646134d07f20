"""Conversion of LeRobot policies to checkpoints, and back.

    import_policy("pretrained_model", data="demonstrations", output="runs/act/policy")
    export_policy("runs/act", output="pretrained_model")

Every weight is accounted for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ....components.base import Backbone
from ....components.heads.diffusion import Diffusion
from ....schemas.errors import WeightsError
from ....schemas.paths import expanded
from ....schemas.specs import IMAGES, Kind, Spec
from ...composed import assemble
from ...planning.data import plan_data
from ...planning.dry_run import dry_run
from ...planning.policy import plan_policy
from ...planning.sources import recipe_time_steps
from ...policy import RecipePolicy
from ...recipe.load import load_recipe
from ...saved_policy import SavedPolicy
from . import files, normalization
from .files import Checkpoint

_TYPES = {Kind.IMAGE: "VISUAL", Kind.STATE: "STATE"}
_STATE, _ENVIRONMENT = "observation.state", "observation.environment_state"


def types() -> list[str]:
    """Return the policy types of LeRobot that can be converted."""
    return sorted(path.stem for path in (Path(__file__).parent / "policies").glob("[a-z]*.py"))


def import_policy(source: str | Path, *, data: str | Path, output: str | Path) -> RecipePolicy:
    """Convert a LeRobot policy to a checkpoint that `AutoModel.from_pretrained(output)` loads.

    Args:
        source: Directory of the LeRobot policy.
        data: LeRobot dataset that it was trained on, or another with the same observations and actions. Sizes
            are compared, and training can continue on it.
        output: Directory of the new checkpoint.

    Raises:
        CheckpointError, RecipeError: A file or the dataset is damaged.
        WeightsError: The policy has no counterpart.
    """
    found = files.read(expanded(source))
    kind = found.config["type"]
    if kind not in types():
        raise WeightsError(f"policies of type `{kind}` cannot be converted, only {', '.join(types())}")
    converter = _converter(kind)
    for step in found.steps:
        if (name := step.get("registry_name")) not in getattr(converter, "STEPS", ()):
            raise WeightsError(f"the preprocessor step `{name}` has no counterpart")
    sections, weights = converter.to_policysmith(found.weights, found.config)
    normalize, statistics = normalization.transforms(found.config, found.statistics)
    if hasattr(converter, "transforms"):
        normalize = converter.transforms(found.config, normalize)
    recipe = {
        "recipe": 1,
        "name": f"lerobot_{kind}",
        **sections,
        "data": {"path": str(expanded(data).resolve()), **sections["data"]},
        "transforms": [*sections.get("transforms", ()), *normalize],
        "training": {"steps": 100_000, **sections.get("training", {})},
    }
    loaded = load_recipe(recipe)
    plan = plan_data(loaded, recipe_time_steps(loaded.sections.data))
    _compare(found.config, plan.specs)
    (dataset,) = plan.sources
    plan = replace(plan, sources=(replace(dataset, statistics={**plan.statistics, **statistics}),))
    wired = plan_policy(loaded, plan)
    dry_run(loaded, plan, wired)
    policy = assemble(loaded, plan, wired, "cpu")
    _load(policy, weights)
    policy.save_pretrained(expanded(output))
    return policy


def export_policy(source: str | Path, *, output: str | Path) -> dict[str, Any]:
    """Convert the policy of a checkpoint or a run to a LeRobot policy, and return its config.

    Raises:
        CheckpointError: `source` has no policy, or `output` is not empty.
        WeightsError: The policy has no counterpart in LeRobot.
    """
    saved = SavedPolicy.find(source)
    if saved.handwritten:
        raise WeightsError("a hand-written policy has no counterpart in LeRobot")
    if saved.robots:
        raise WeightsError(
            f"the policy is for {len(saved.robots)} robots, `{'`, `'.join(saved.robots.names)}`; LeRobot policies are for one"
        )
    policy: RecipePolicy = RecipePolicy.from_pretrained(saved.directory)
    content = _with_reads(policy)
    head = content["recipe"]["policy"]["head"]["type"]
    kind = next((kind for kind in types() if _converter(kind).is_of(content["recipe"])), None)
    if kind is None:
        raise WeightsError(
            f"no LeRobot policy has a head like `{head}`; only {', '.join(types())} can be converted"
        )
    converter = _converter(kind)
    config: dict[str, Any]
    config, weights = converter.to_lerobot(policy.state_dict(), content)
    inputs, outputs = _features(policy)
    steps: list[dict[str, Any]] = []
    if hasattr(converter, "processor"):
        options, steps, content = converter.processor(content)
        config |= options
    mapping, statistics = normalization.processor(content, {**inputs, **outputs})
    config |= {"input_features": inputs, "output_features": outputs, "normalization_mapping": mapping}
    files.write(expanded(output), Checkpoint(config, weights, statistics, steps))
    return config


def _with_reads(policy: RecipePolicy) -> dict[str, Any]:
    """Return the content of the config with the inputs of each backbone and the bound of the head."""
    recipe = policy.content["recipe"]
    read = {name: list(cast(Backbone, backbone).keys) for name, backbone in policy.backbones.items()}
    backbones = {name: {**raw, "reads": read[name]} for name, raw in recipe["policy"]["backbones"].items()}
    head = recipe["policy"]["head"]
    if isinstance(policy.head, Diffusion):
        head = {**head, "clip_sample": policy.head.bound}
    section = {**recipe["policy"], "backbones": backbones, "head": head}
    return {**policy.content, "recipe": {**recipe, "policy": section}}


def _converter(kind: str) -> Any:
    return importlib.import_module(f"{__package__}.policies.{kind}")


def _load(policy: RecipePolicy, weights: Mapping[str, Any]) -> None:
    """Load the weights, or raise WeightsError for names or shapes that differ."""
    own = policy.state_dict()
    misfits = [
        f"{name} has shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and own[name].shape != value.shape
    ]
    misfits += [f"{name} has no counterpart" for name in sorted(own.keys() ^ weights.keys())]
    if misfits:
        raise WeightsError(f"the weights do not fit the policy: {'; '.join(misfits[:5])}")
    policy.load_state_dict(dict(weights))


def _compare(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> None:
    """Raise WeightsError for observations or actions that the dataset lacks or that differ in size."""
    for key, feature in {**config["input_features"], **config["output_features"]}.items():
        spec, shape = specs.get(key), tuple(feature["shape"])
        if spec is None or spec.dims[2:] != shape:
            has = "has none" if spec is None else f"has {spec.dims[2:]}"
            raise WeightsError(f"the policy was trained with `{key}` {shape}, but the dataset {has}")


def _features(policy: RecipePolicy) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the input and output features for config.json, with cameras in reading order."""
    specs = {key: Spec.from_json(spec) for key, spec in policy.content["specs"].items()}
    read = [key for part in policy.backbones.values() for key in cast(Backbone, part).keys]
    if "{state}" in policy.content["recipe"]["collator"].get("prompt", ""):
        read.append(_STATE)
    inputs = {
        key: {
            "type": "ENV" if key == _ENVIRONMENT else _TYPES[specs[key].kind],
            "shape": list(specs[key].dims[2:]),
        }
        for key in sorted(dict.fromkeys(read), key=lambda key: key.startswith(IMAGES))
        if key in specs and specs[key].kind in _TYPES
    }
    return inputs, {"action": {"type": "ACTION", "shape": [specs["action"].width]}}


__all__ = ["export_policy", "import_policy", "types"]
