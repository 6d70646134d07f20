"""Export of a trained policy, as a checkpoint of its own or as one file that was checked by running it.

export("runs/act", "act_onnx", format="onnx")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from ...schemas.errors import CheckpointError, SpecError
from ...schemas.paths import expanded
from ..policy import BasePolicyModel, RecipePolicy
from ..policy.storage import manifest, saving
from ..publishing.card import CARD, model_card
from ..saved_policy import SavedPolicy
from .formats import FORMATS, Run, trace
from .merging import merge_adapters
from .metadata import NAME, describe
from .program import Program

AGREES = 1e-3
"""Largest difference between the actions of a file and of its policy, in units of the actions' deviation."""


def export(
    run_or_checkpoint: str | Path,
    output: str | Path,
    *,
    format: Literal["checkpoint", "torch-export", "onnx"] = "checkpoint",
    merge: bool = False,
    allow_imports: bool = False,
    verify: bool = True,
) -> None:
    """Write the policy of a run or checkpoint to a new directory.

    Args:
        run_or_checkpoint: A run, for its newest policy, or a checkpoint.
        output: Directory to write, which must be empty or absent.
        format: `checkpoint`, or a file that runs without policysmith: `torch-export` or `onnx`. Such a file
            computes in float32, and is kept only if it agrees with the policy.
        merge: Merge low-rank adapters into the weights, as `merge_adapters` does.
        allow_imports: Run the files under `imports:` of its recipe.
        verify: Verify the files of the checkpoint against its manifest.

    Raises:
        CheckpointError: The policy is missing or damaged, is hand-written, has no adapters to merge, or the
            directory is not empty or cannot be written.
        SpecError: A part cannot be written to a file of this format, or the file disagrees with the policy.
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
        merge_adapters(_composed(policy, saved, "must merge its own adapters; leave `--merge` out"))
    if format == "checkpoint":
        policy.save_pretrained(output)
        (output / CARD).write_text(model_card(saved))
        return
    composed = _composed(policy, saved, "must be exported by its own code; leave `--format` out")
    with saving.staged(output) as directory:
        _write_file(saved, composed, format, directory)
        manifest.write(directory)
        (directory / CARD).write_text(model_card(saved, file=FORMATS[format].file))


def _composed(policy: BasePolicyModel, saved: SavedPolicy, what: str) -> RecipePolicy:
    if saved.handwritten:
        raise CheckpointError(f"`{saved.model_type}` is hand-written, so it {what}")
    return cast(RecipePolicy, policy)


def _write_file(saved: SavedPolicy, policy: RecipePolicy, name: str, directory: Path) -> None:
    """Write and check a file, its description, and the files of the collator."""
    form, program = FORMATS[name], Program(policy)
    form.require()
    traced, free = trace(program)
    inputs, _ = program.example(1)
    path = directory / form.file
    form.write(traced, list(inputs), path)
    check(form.open(path), program, sizes=(1, 3) if free else (1,))
    content = describe(saved, program, inputs, form=name, file=path, free=free)
    (directory / NAME).write_text(json.dumps(content, indent=1) + "\n")
    assets = directory / saving.ASSETS
    assets.mkdir()
    policy.collator.save_assets(assets)
    if not any(assets.iterdir()):
        assets.rmdir()


def check(run: Run, program: Program, sizes: tuple[int, ...]) -> None:
    """Raise SpecError if an exported file returns other actions than its policy, in batches of these sizes."""
    for seed, size in enumerate(sizes, start=1):
        inputs, expected = program.example(size, seed)
        found = run(inputs)
        if found.shape != expected.shape:
            raise SpecError(
                f"the file returns {tuple(found.shape)} instead of {tuple(expected.shape)}", help=_REPORT
            )
        off = _difference(program.policy, inputs, found, expected)
        if not off <= AGREES:
            raise SpecError(
                f"the file returns other actions than the policy: they differ by {off:.2g} deviations of the data, "
                f"more than {AGREES}, so it was not kept",
                help=_REPORT,
            )


_REPORT = "report the recipe, and serve the policy meanwhile, with `policysmith serve`"


def _difference(policy: RecipePolicy, inputs: dict[str, Tensor], found: Tensor, expected: Tensor) -> float:
    """Return the largest difference between chunks (B, H, A), in deviations of the training actions."""
    held, worst = policy.content["statistics"] or {}, 0.0
    for robot, own in policy.robots.split(inputs, (found - expected).abs()):
        statistics = (held if robot is None else held[robot]).get("action", {})
        deviation = torch.tensor(statistics.get("std", [1.0] * own.shape[-1]))
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)
        worst = max(worst, float((own / deviation).max()))
    return worst


__all__ = ["AGREES", "check", "export"]
