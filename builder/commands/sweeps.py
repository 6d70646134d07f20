"""The verb about sweeps."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...schemas.paths import expanded
from ..builder import Builder
from ..cli import console, set_up_logging
from ..display import shown
from ..sweeping.space import overrides
from ..sweeping.sweep import best, plan, run


def sweep(args: Namespace) -> int:
    """Run `policysmith sweep`, which exits with 1 if no trial finished."""
    set_up_logging()
    planned = plan(
        args.document,
        args.search,
        name=args.method,
        trials=args.trials,
        metric=args.metric,
        seed=args.seed,
        jobs=args.jobs,
        device=args.device,
        allow_imports=args.allow_imports,
    )
    recipe = Builder.from_recipe(args.document, allow_imports=args.allow_imports).recipe
    output = expanded(args.output or Path("sweeps") / recipe.sections.name)
    trials = run(planned, output, console.print)
    first = best(trials, maximize=planned.maximize)
    failed = sum(trial.status == "failed" for trial in trials)
    told = f", {failed} failed" if failed else ""
    console.print(f"{len(trials)} trials{told}  {shown(output)}/report.html")
    if first is None:
        console.print("no trial finished; the page has their errors, and `output.log` of each its output")
        return 1
    console.print(
        f"best    trial {first.number}, {planned.metric} {first.value:.4g}  {shown(output)}/trials/{first.number:04d}"
    )
    console.print("        " + " ".join(f"-o '{change}'" for change in overrides(first.values)))
    return 0


__all__ = ["sweep"]
