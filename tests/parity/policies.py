"""Policies without a dataset: from the sections of a recipe and the specs of what they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policysmith.builder.policy.recipe_policy import RecipeConfig, RecipePolicy
from policysmith.builder.wiring.parts import Parts
from policysmith.schemas.recipe import Recipe
from policysmith.schemas.specs import Spec


def build(sections: Mapping[str, Any], specs: Mapping[str, Spec]) -> RecipePolicy:
    """Build a policy from the sections `data`, `policy` and `transforms`, with its initial weights."""
    section = {"path": "none", **sections["data"]}
    raw = {
        "recipe": 1,
        "name": "parity",
        "data": section,
        "policy": sections["policy"],
        "transforms": sections.get("transforms", []),
        "training": {"steps": 1},
    }
    recipe = Recipe.model_validate(raw).model_dump(mode="json")
    parts = Parts.from_resolved(recipe)
    policy = recipe["policy"]
    for kind in ("backbones", "necks"):
        policy[kind] = {
            name: site.config.model_dump(mode="json") for name, site in getattr(parts, kind).items()
        }
    recipe["transforms"] = [site.config.model_dump(mode="json") for site in parts.transforms]
    policy["head"] = parts.head.config.model_dump(mode="json")
    held = {key: spec.to_json() for key, spec in specs.items()}
    return RecipePolicy(RecipeConfig(recipe=recipe, specs=held, facts={}, statistics={}))
