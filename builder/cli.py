"""Commands of `build-and-train` and `policysmith`.

`schemas/console.py` parses the flags and validates the recipe.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from pathlib import Path

from rich.progress import Progress
from transformers.utils import logging as transformers_logging

from ..components.registry import REGISTRIES
from ..schemas.console import report
from ..schemas.errors import PolicysmithError
from ..schemas.origins import origins
from ..schemas.paths import expanded
from ..schemas.questions import explanation
from ..schemas.questions.commands import line_width, rendered
from . import runs
from .builder import Builder
from .display import PlainConsole, PlainFormatter, TerminalProgress, show_robots, show_summary, shown

console = PlainConsole()
is_main_process = os.environ.get("RANK", "0") == "0"


def set_up_logging() -> None:
    """Log warnings and the project's own lines to stderr, and hide those of libraries."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    for chatty in ("httpx", "accelerate", "matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()


def _builder(args: Namespace) -> Builder:
    set_up_logging()
    return Builder.from_recipe(args.document, allow_imports=args.allow_imports)


def train(args: Namespace) -> int:
    """Run `build-and-train`."""
    builder = _builder(args)
    builder.claim(args.output, resume=args.resume)
    builder = (builder.resuming(args.output) if args.resume else builder).check()
    progress = TerminalProgress(console)
    if is_main_process:
        show_robots(console, builder.sources)
    if builder.summary is not None and is_main_process:
        show_summary(console, builder.summary)
    try:
        result = builder.train(
            output=args.output,
            resume=args.resume,
            device=args.device,
            reporters=(progress,),
            profile=args.profile,
            verify=args.verify,
        )
    finally:
        progress.close()
    if is_main_process:
        run = builder.run_directory(args.output)
        speed = f" at {result.samples_per_second:,.0f} samples/s" if result.samples_per_second else ""
        speed = speed if result.taken else " before"
        console.print(f"trained {result.steps} steps{speed}")
        if result.first_step_seconds is not None:
            first = f"the first step, with compilation, {result.first_step_seconds:.1f} s"
            console.print(f"start-up took {result.startup_seconds:.1f} s and {first}")
        console.print(f"policy  {shown(run)}/{runs.POLICY}  ->  AutoModel.from_pretrained")
        if builder.recipe.sections.evaluation is not None:
            console.print(f"next    policysmith evaluate {shown(run)}")
    return 0


def check(args: Namespace) -> int:
    """Run `policysmith check`."""
    builder = _builder(args).check(deep=args.deep)
    if args.format != "text":
        report(builder.warnings, args.format)
        return 0
    show_robots(console, builder.sources)
    if builder.summary is not None:
        show_summary(console, builder.summary)
    for line in builder.initialization_report:
        console.print(line)
    sections = builder.recipe.sections.training
    console.print(f"{sections.steps:,} steps see each training frame {builder.epochs:,.2g} times")
    report(builder.warnings)
    console.print(f"{args.recipe} is valid")
    return 0


def render(args: Namespace) -> int:
    """Run `policysmith render` for a recipe with parts of its own."""
    recipe = _builder(args).recipe
    sys.stdout.write(rendered(recipe.resolved(), origins(recipe.document) if args.origins else None))
    return 0


def listing(args: Namespace) -> int:
    """Run `policysmith list` for parts and policies that only this machine has."""
    from .policy.registration.registry import policies
    from .recipe.json_schema import recipe_schema

    root = recipe_schema(plugins=True)
    for kind in REGISTRIES:
        if args.kind in (None, kind):
            sys.stdout.write(explanation.listing(kind, root, line_width()))
    if args.kind in (None, "policies"):
        sys.stdout.write(f"policies: {', '.join(policies()) or 'none'}\n")
    return 0


def explain(args: Namespace) -> int:
    """Run `policysmith explain` for parts that only this machine has."""
    from .recipe.json_schema import recipe_schema

    sys.stdout.write(explanation.explain(args.topic, recipe_schema(plugins=True), line_width()))
    return 0


def schema(args: Namespace) -> int:
    """Run `policysmith schema`."""
    from ..schemas.json_schema import SCHEMA_FILE
    from .recipe.imports import run_import
    from .recipe.json_schema import schema_text, write_schema

    if args.write and (args.out or args.with_plugins is not None):
        raise PolicysmithError("`--write` writes the shipped schema; leave out `--out` and `--with-plugins`")
    if args.write:
        console.print(f"{shown(SCHEMA_FILE)}: {'written' if write_schema() else 'up to date'}")
        return 0
    for entry in args.with_plugins or ():
        run_import(entry)
    text = schema_text(plugins=args.with_plugins is not None)
    if not args.out:
        sys.stdout.write(text)
        return 0
    expanded(args.out).write_text(text, encoding="utf-8")
    return 0


def data_record(args: Namespace) -> int:
    """Run `policysmith data record`."""
    from .data.writing.record import record

    set_up_logging()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("recording", total=args.episodes)
        summary = record(
            args.env,
            args.episodes,
            expanded(args.output),
            image_size=args.image_size,
            seed=args.seed,
            noise=args.noise,
            workers=args.workers,
            progress=lambda kept, _: bar.update(task, completed=kept),
        )
    console.print(str(summary))
    return 0


def evaluate(args: Namespace) -> int:
    """Run `policysmith evaluate`."""
    from .evaluation.evaluate import evaluate as run_evaluation

    set_up_logging()
    result = run_evaluation(
        Path(args.checkpoint),
        env=args.env,
        embodiment=args.embodiment,
        episodes=args.episodes,
        seed=args.seed,
        control=args.control,
        open_loop=args.open_loop,
        output=Path(args.output) if args.output else None,
        device=args.device,
        allow_imports=args.allow_imports,
        verify=args.verify,
        progress=lambda message: console.print(message),
    )
    for line in result.lines:
        console.print(line)
    return 0


def import_lerobot(args: Namespace) -> int:
    """Run `policysmith import-lerobot`."""
    from .interop.lerobot.convert import import_policy

    set_up_logging()
    policy = import_policy(args.directory, data=args.data, output=args.output)
    console.print(
        f"{sum(p.numel() for p in policy.parameters()):,} parameters of {args.directory}", markup=False
    )
    console.print(f"policy  {shown(Path(args.output))}  ->  AutoModel.from_pretrained")
    return 0


def export_lerobot(args: Namespace) -> int:
    """Run `policysmith export-lerobot`."""
    from .interop.lerobot.convert import export_policy

    set_up_logging()
    config = export_policy(args.checkpoint, output=args.output)
    console.print(f"LeRobot {config['type']}  {shown(Path(args.output))}")
    return 0


def export(args: Namespace) -> int:
    """Run `policysmith export`."""
    from .exporting.export import export as write

    set_up_logging()
    write(
        args.checkpoint,
        args.output,
        format=args.format,
        merge=args.merge,
        allow_imports=args.allow_imports,
        verify=args.verify,
    )
    use = {"checkpoint": "AutoModel.from_pretrained", "torch-export": "torch.export.load"}
    console.print(
        f"policy  {shown(Path(args.output))}  ->  {use.get(args.format, 'onnxruntime.InferenceSession')}"
    )
    return 0
