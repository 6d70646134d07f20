"""Necks in a policy: which robot a sample is from reaches them."""

from __future__ import annotations

import torch

from policysmith.builder.policy.recipe_policy import RecipeConfig, RecipePolicy
from policysmith.builder.wiring.parts import Parts
from policysmith.schemas.recipe import Recipe
from policysmith.schemas.specs import Kind, Spec

SPECS = {
    "observation.state": Spec(Kind.STATE, ("B", 1, 5)),
    "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=2),
    "action": Spec(Kind.ACTION, ("B", 4, 3)),
}


def test_prompts_of_each_robot_reach_the_head() -> None:
    raw = {
        "recipe": 1,
        "name": "robots",
        "data": {"path": "none", "horizon": 4},
        "policy": {
            "backbones": {"proprio": {"type": "mlp", "width": 8}},
            "necks": {
                "prompt": {"type": "soft_prompt", "reads": ["proprio"], "prompts": 2, "per_embodiment": True}
            },
            "head": {"type": "mlp"},
        },
        "training": {"steps": 1},
    }
    recipe = Recipe.model_validate(raw).model_dump(mode="json")
    parts = Parts.from_resolved(recipe)
    for kind in ("backbones", "necks"):
        sites = getattr(parts, kind).items()
        recipe["policy"][kind] = {name: site.config.model_dump(mode="json") for name, site in sites}
    recipe["policy"]["head"] = parts.head.config.model_dump(mode="json")
    held = {key: spec.to_json() for key, spec in SPECS.items()}
    policy = RecipePolicy(RecipeConfig(recipe=recipe, specs=held, facts={}, statistics={}))
    prompts = policy.necks["prompt"].prompts
    assert prompts.shape == (2, 2, 8)
    batch = {"observation.state": torch.randn(3, 1, 5), "embodiment": torch.tensor([1, 0, 1])}
    tokens = policy.features(batch)["prompt.tokens"].values
    assert torch.equal(tokens[:, :2], prompts[[1, 0, 1]])
    assert policy.inference(batch).shape == (3, 4, 3)
