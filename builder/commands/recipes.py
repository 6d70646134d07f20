"""Verbs about recipes that need the data or the parts."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from ...schemas.diagnostics import Diagnostic
from ...schemas.errors import PolicysmithError, RecipeError
from ...schemas.paths import exists, expanded
from ..builder import Builder
from ..display import PlainConsole, show_summary
from ..machine import training_memory
from ..planning.graph import graph as draw
from ..planning.graph import mermaid, svg
from ..planning.memory import changes, held_bytes
from ..recipe.draft import Draft
from .guide import guided

console = PlainConsole()


def new(args: Namespace) -> int:
    """Run `policysmith new`, which writes a recipe that passes `check`, or nothing; on a terminal it may ask.

    Weights and tokenizers that cannot be reached now are reported, and do not count.
    """
    memory = args.gpu
    if memory is None and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    if args.data is None:
        args = guided(args, memory)
    draft = Draft.of(Path(args.data), policy=args.policy, base=args.base, gibibytes=memory)
    file = expanded(args.out or f"{draft.name}.yaml")
    if exists(file):
        raise PolicysmithError(f"{file} exists; choose another `--out`, or remove it")
    text = draft.text(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    try:
        doubts: Sequence[Diagnostic] = (
            Builder.from_recipe(file, allow_imports=args.allow_imports).check().warnings
        )
    except PolicysmithError as error:
        doubts = error.diagnostics if isinstance(error, RecipeError) else ()
        if not doubts or any(each.code != "E024 bad-weights" for each in doubts):
            file.unlink()
            raise
    for each in (*(each.line for each in doubts), *draft.notes):
        sys.stderr.write(f"{each}\n")
    sys.stdout.write(f"{file}: {draft.title}\nnext    policysmith train {file}\n")
    return 0


def graph(args: Namespace) -> int:
    """Run `policysmith graph`."""
    builder = _composed(args)
    assert builder.plan is not None
    assert builder.summary is not None
    sys.stdout.write({"mermaid": mermaid, "svg": svg}[args.format](draw(builder.plan, builder.summary)))
    return 0


def summary(args: Namespace) -> int:
    """Run `policysmith summary`, which exits with 1 if the policy does not fit `--gpu`."""
    builder = _composed(args)
    sizes = builder.summary
    assert sizes is not None
    show_summary(console, sizes)
    held = held_bytes(builder.recipe, sizes)
    console.print("")
    for part, count in held.items():
        console.print(f"{part:<24} {count / 2**30:8.2f} GiB for weights, gradients and optimizer")
    total = sum(held.values())
    console.print(f"{'in all':<24} {total / 2**30:8.2f} GiB, and the activations of a batch")
    console.print(f"{(builder.operations or 0) / 1e9:,.3g} GFLOP a sample, forward and backward")
    memory, owner = training_memory() if args.gpu is None else (int(args.gpu * 2**30), "the GPU")
    fits = total <= memory
    verb = "fits" if fits else "does not fit"
    console.print(f"{verb} into the {memory / 2**30:,.1f} GiB of {owner}")
    if not fits:
        _advise(builder, total, memory)
    return 0 if fits else 1


def _advise(builder: Builder, total: int, memory: int) -> None:
    assert builder.summary is not None
    found = changes(builder.recipe, builder.summary)
    for change in found:
        left = (total - change.saves) / 2**30
        fits = ", which fits" if total - change.saves <= memory else ""
        console.print(f"  -o '{change.override}'  leaves {left:,.2f} GiB{fits}; {change.price}")
    processes = math.ceil(total / memory)
    console.print(
        f"  -o training.sharding=full  on {processes} GPUs leaves {total / processes / 2**30:,.2f} GiB each"
    )
    console.print(
        "activations shrink with `training.batch_size`, and with `gradient_checkpointing` of a backbone"
    )


def _composed(args: Namespace) -> Builder:
    """Return the checked builder of a composed policy. Raise PolicysmithError for a hand-written one."""
    builder = Builder.from_recipe(args.document, allow_imports=args.allow_imports).check()
    if builder.plan is None:
        raise PolicysmithError("a hand-written policy has no parts; this verb describes composed policies")
    return builder


__all__ = ["graph", "new", "summary"]
