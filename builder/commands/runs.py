"""Verbs about runs."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from ...schemas.errors import CheckpointError
from ...schemas.paths import expanded
from .. import runs
from ..builder import Builder
from ..cli import console, set_up_logging
from ..display import TerminalProgress
from ..provenance import git_state, versions
from ..recipe.loaded import LoadedRecipe
from ..saved_policy import SavedPolicy


def reproduce(args: Namespace) -> int:
    """Run `policysmith reproduce`: train a run's recipe again, and exit with 1 if a weight differs."""
    set_up_logging()
    run = expanded(args.run)
    recipe = run / "recipe.yaml"
    if runs.latest(run) is None or not recipe.is_file():
        raise CheckpointError(f"{run} holds no finished run with its recipe; name the directory of a run")
    before = SavedPolicy.find(run)
    output = Path(args.output) if args.output else run.with_name(f"{run.name}_reproduced")
    builder = Builder.from_recipe(recipe, allow_imports=args.allow_imports).check()
    provenance = before.content["provenance"]
    for line in _changes(before, builder.recipe):
        sys.stderr.write(f"{line}\n")
    progress = TerminalProgress(console)
    try:
        policy = builder.train(output=output, device=args.device, reporters=(progress,)).policy
    finally:
        progress.close()
    if policy.content["provenance"]["dataset"] != provenance["dataset"]:
        sys.stderr.write("the dataset has changed since the run\n")
    differ, far = _compare(before.directory, SavedPolicy.find(output).directory)
    if not differ:
        console.print(f"reproduced: all weights of {run} and {output} are equal")
        return 0
    console.print(f"not reproduced: {differ} tensors differ, by {far:.3g} at most")
    return 1


def _changes(before: SavedPolicy, recipe: LoadedRecipe) -> Iterator[str]:
    """Yield what changed since a policy was trained: its recipe, versions of packages, and code."""
    provenance = before.content["provenance"]
    again = replace(recipe, resumed=(before.recipe, before.recipe_directory))
    if again.sha256 != provenance["recipe_sha256"]:
        yield f"recipe.yaml was changed after the run; see `policysmith diff {before.directory} RUN/recipe.yaml`"
    for name, was in provenance["versions"].items():
        if (now := versions(name).get(name)) != was:
            yield f"{name} was {was} and is {now}; numbers may differ"
    code = provenance.get("git")
    if code is None:
        return
    if code["dirty"]:
        yield f"the code had changes that commit {code['commit'][:12]} does not hold; numbers may differ"
    today = git_state(before.recipe_directory)
    if today is not None and today != code:
        state = " with changes" if today["dirty"] else ""
        yield f"the code was at commit {code['commit'][:12]} and is at {today['commit'][:12]}{state}"


def _compare(one: Path, other: Path) -> tuple[int, float]:
    """Return the number of tensors that differ between two checkpoints, and the largest difference."""
    differ, far = 0, 0.0
    for path in sorted(one.glob("*.safetensors")):
        with safe_open(path, "pt") as left, safe_open(other / path.name, "pt") as right:
            for name in left.keys():  # noqa: SIM118  (no mapping)
                distance = (left.get_tensor(name).double() - right.get_tensor(name).double()).abs()
                if distance.numel() and (most := float(distance.max())) > 0.0:
                    differ, far = differ + 1, max(far, most)
    return differ, far


__all__ = ["reproduce"]
