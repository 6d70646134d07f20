"""Export of a trained policy as a separate checkpoint.

export("runs/vla", "vla_merged", merge=True)
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import cast

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
    """Write the policy of a run or checkpoint to a new directory.

    Args:
        run_or_checkpoint: A run, for its newest policy, or a checkpoint.
        output: Directory to write, which must be empty or absent.
        merge: Merge low-rank adapters into the weights, as `merge_adapters` does.
        allow_imports: Run the files under `imports:` of its recipe.
        verify: Verify the files of the checkpoint against its manifest.

    Raises:
        CheckpointError: The policy is missing or damaged, has no adapters to merge, or the directory is not
            empty or cannot be written.
        WeightsError: The adapters cannot be merged.
        RecipeError: A file that the recipe imports fails.
    """
    output = expanded(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} is not empty; choose another `--output`")
    saved = SavedPolicy.find(run_or_checkpoint, verify=verify)
    saved.run_imports(allowed=allow_imports)
    policy = saved.load()
    if merge:
        if saved.handwritten:
            raise CheckpointError(
                f"`{saved.model_type}` is hand-written, so its class must merge its own adapters; leave `--merge` out"
            )
        merge_adapters(cast(RecipePolicy, policy))
    policy.save_pretrained(output)


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


__all__ = ["export", "merge_adapters"]
