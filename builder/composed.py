"""From a plan to a policy: its config, then weights, then pretrained weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

import torch

from ..schemas.errors import PolicysmithError, RecipeError
from ..schemas.specs import Spec, Specs
from .data.dataset import LeRobotDataset
from .data.mixture import Mixture
from .planning.policy import PolicyPlan, specs_to_json
from .planning.sources import DataPlan
from .policy import BasePolicyModel, RecipePolicy
from .policy.named_classes import pair
from .recipe.load import LoadedRecipe
from .recipe.standalone import standalone

Covered = Callable[[RecipePolicy], Collection[str]]
_PACKAGES = ("policysmith", "torch", "transformers", "timm", "peft", "accelerate")


@dataclass(frozen=True)
class Summary:
    """What a policy will be, known without allocating it."""

    name: str
    parameters: int
    trainable: int
    frozen: dict[str, int]
    """Parameters stopped by each `freeze` pattern."""
    parts: dict[str, int]
    """Parameters by part."""
    trains: dict[str, int]
    """Those of them that train."""
    adapted: dict[str, int]
    """Layers with a low-rank adapter, by backbone that has some."""
    features: Specs
    action: Spec
    unused: dict[str, int]
    """Parameters that feed nothing, by pattern; they are frozen too."""
    moments: int
    """Bytes of the moments that AdamW keeps of what trains, in one process."""
    warnings: tuple[str, ...] = ()
    """Doubts that do not stop a run."""

    @property
    def training_bytes(self) -> int:
        """Weights in fp32, and gradient and two AdamW moments of what trains; activations not included."""
        return 4 * self.parameters + 4 * self.trainable + self.moments


def content(loaded: LoadedRecipe, data: DataPlan, policy: PolicyPlan) -> dict[str, Any]:
    """The fields of the policy's config."""
    return {
        "recipe": loaded.resolved(),
        "specs": specs_to_json(data.specs),
        "facts": policy.facts,
        "statistics": data.statistics,
        "robots": data.robots.to_json(),
        "signals": data.signals,
        "provenance": provenance(loaded),
    }


def provenance(loaded: LoadedRecipe) -> dict[str, Any]:
    """What made a policy: hash of its recipe and versions of the packages, those that own its parts included."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {"recipe_sha256": loaded.sha256, "versions": versions | _plugins(loaded)}


def record_data(policy: BasePolicyModel, source: LeRobotDataset | Mixture) -> None:
    """Note in a policy's config the fingerprint of the data it is trained on; of several robots, also that of each."""
    provenance = policy.content["provenance"]
    provenance["dataset"] = source.fingerprint
    if isinstance(source, Mixture):
        provenance["datasets"] = source.fingerprints


def _plugins(loaded: LoadedRecipe) -> dict[str, str]:
    """Versions of the distributions whose entry points give the recipe's parts."""
    parts = {
        "collators": [loaded.collator],
        "transforms": loaded.transforms,
        "backbones": loaded.backbones.values(),
        "necks": loaded.necks.values(),
        "heads": [] if loaded.head is None else [loaded.head],
    }
    points = [
        point
        for kind, pairs in parts.items()
        for point in entry_points(group=f"policysmith.{kind}")
        if point.name in {config.type for _, config in pairs}
    ]
    return {point.dist.name: point.dist.version for point in points if point.dist is not None}


def assemble(
    loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan, device: str, covered: Covered = lambda policy: ()
) -> RecipePolicy:
    """The policy with its initial weights, in evaluation mode; on `meta`, without any.

    `covered` names backbones that get all their weights elsewhere. Raises RecipeError for pretrained weights that do not fit, RegistryError where the name belongs to something else.
    """
    config, model = pair(content(loaded, data, plan))
    torch.manual_seed(loaded.recipe.training.seed)
    with torch.device(device):
        policy: RecipePolicy = model(config())
    if loaded.document.root.span.source.text is not None:
        policy.recipe_text = standalone(loaded.document, located=False)
    policy.directory = loaded.directory
    elsewhere = covered(policy) if device != "meta" else plan.parts.backbones
    for name, site in plan.parts.backbones.items():
        if name in elsewhere:
            continue
        try:
            policy.load_pretrained(name)
        except PolicysmithError as error:
            raise RecipeError(
                [loaded.diagnostic(site.location, str(error), code="E024 bad-weights")]
            ) from error
    return policy.eval()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


__all__ = ["Summary", "assemble", "content", "provenance", "record_data"]
