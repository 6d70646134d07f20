"""A trained policy, written as a checkpoint of its own.

export("runs/vla", "vla_merged", merge=True)
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from ..components.pretrained import lora
from ..schemas.errors import CheckpointError
from ..schemas.paths import expanded
from .policy import RecipePolicy
from .saved_policy import SavedPolicy


def export(
    run_or_checkpoint: str | Path,
    output: str | Path,
    *,
    merge: bool = False,
    allow_imports: bool = False,
    verify: bool = True,
) -> None:
    """Write the newest policy of a run, or the policy in a checkpoint, to a new directory; `merge` as `merge_adapters`.

    Raises:
        CheckpointError: there is no policy, its files are not those that were saved (unless `verify` is off), it has no
            adapters to merge, or the directory holds something or cannot be written.
        WeightsError: the adapters cannot be merged.
        RecipeError: a file that the recipe imports fails.
    """
    output = expanded(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists and holds something; choose another `--output`")
    saved = SavedPolicy.find(run_or_checkpoint, verify=verify)
    saved.run_imports(allowed=allow_imports)
    policy = saved.load()
    if merge:
        if not isinstance(policy, RecipePolicy):
            raise CheckpointError(
                f"`{saved.model_type}` is written by hand, and merges its adapters itself; leave `--merge` out"
            )
        merge_adapters(policy)
    policy.save_pretrained(output)


def merge_adapters(policy: RecipePolicy) -> None:
    """Add the low-rank adapters of a policy to the weights beside them, and take them out of its recipe.

    What it does stays the same, but for rounding; what it costs at every step is that of the plain layers. Patterns of
    the recipe that named adapters alone go with them. Raises CheckpointError for a policy without adapters, and
    WeightsError for adapters that are not finite.
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
    policy.recipe_text = None  # as it was written, it has the adapters


__all__ = ["export", "merge_adapters"]
