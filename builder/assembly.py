"""From a plan to a policy: its config, then weights, then pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..schemas.errors import PolicysmithError, RecipeError
from ..schemas.specs import Spec, Specs
from .plan import DataPlan, PolicyPlan, specs_to_json
from .policy import RecipePolicy
from .policy.dynamic import pair
from .recipe import LoadedRecipe

_PACKAGES = ("policysmith", "torch", "transformers", "timm", "accelerate")


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
    features: Specs
    action: Spec

    @property
    def training_bytes(self) -> int:
        """Weights in fp32, and gradient and two AdamW moments of what trains; activations not included."""
        return 4 * self.parameters + 12 * self.trainable


def content(loaded: LoadedRecipe, data: DataPlan, policy: PolicyPlan) -> dict[str, Any]:
    """The fields of the policy's config."""
    return {
        "recipe": loaded.resolved(),
        "specs": specs_to_json(data.specs),
        "facts": policy.facts,
        "statistics": data.statistics,
        "provenance": provenance(loaded),
    }


def provenance(loaded: LoadedRecipe) -> dict[str, Any]:
    """What made a policy: hash of its recipe and versions of the packages."""
    return {"recipe_sha256": loaded.sha256, "versions": {name: _version(name) for name in _PACKAGES}}


def assemble(loaded: LoadedRecipe, data: DataPlan, plan: PolicyPlan, device: str) -> RecipePolicy:
    """The policy with its initial weights, in evaluation mode; on `meta`, without any.

    Raises RecipeError for pretrained weights that do not fit, RegistryError where the name stands for another recipe.
    """
    config, model = pair(content(loaded, data, plan))
    torch.manual_seed(loaded.recipe.training.seed)
    with torch.device(device):
        policy: RecipePolicy = model(config())
    policy.recipe_text = loaded.document.root.span.source.text
    policy.directory = loaded.directory
    for name, site in plan.parts.backbones.items() if device != "meta" else ():
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


__all__ = ["Summary", "assemble", "content", "provenance"]
