"""Merge of low-rank adapters into the weights of a policy."""

from __future__ import annotations

import fnmatch

from ...components.pretrained import lora
from ...schemas.errors import CheckpointError
from ..policy import RecipePolicy


def merge_adapters(policy: RecipePolicy) -> None:
    """Merge the low-rank adapters of a policy into its weights, and remove them from its recipe.

    Its actions stay the same except for rounding, at the cost of the plain layers. Patterns of the recipe
    that match only adapters are removed too.

    Raises:
        CheckpointError: The policy has no adapters.
        WeightsError: An adapter is not finite.
    """
    adapted = [name for name, backbone in policy.backbones.items() if lora.count_adapters(backbone)]
    if not adapted:
        raise CheckpointError(
            "the policy has no low-rank adapters to merge; leave `--merge` out (adapters come from `lora` of a backbone)"
        )
    recipe = policy.content["recipe"]
    for name in adapted:
        lora.merge(policy.backbones[name])
        recipe["policy"]["backbones"][name]["lora"] = None
    names = [name for name, _ in policy.named_parameters()]

    def matches(pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    recipe["policy"]["freeze"] = [pattern for pattern in recipe["policy"]["freeze"] if matches(pattern)]
    optimizer = recipe["training"]["optimizer"]
    optimizer["groups"] = [group for group in optimizer["groups"] if matches(group["match"])]
    policy.content["provenance"]["merged"] = adapted
    policy.recipe_text = None  # the author's text has the adapters


__all__ = ["merge_adapters"]
