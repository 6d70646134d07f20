"""Flags of the verbs about training and runs."""

from __future__ import annotations

from .parser import Parser, add_device, add_imports, add_recipe, add_verify

GROUP = "training"


def examples(command: str) -> tuple[str, ...]:
    """Return examples of training, for `policysmith train` or its alias."""
    return (
        f"{command} recipes/vit_mlp.yaml",
        f"{command} recipes/vit_mlp.yaml -o training.steps=100 -o policy.head.hidden=[64, 64]",
        f"{command} recipes/vit_mlp.yaml --resume",
        f"torchrun --no-python --nproc-per-node 2 {command} recipes/vit_mlp.yaml",
    )


def add(parser: Parser) -> None:
    """Add the verbs about training and runs."""
    command = f"{parser.prog} train"
    add_train(
        parser.add_verb(
            GROUP, "train", "train", "build the policy of a recipe and train it", *examples(command)
        )
    )

    listing = parser.add_verb(
        GROUP,
        "runs",
        "list_runs",
        "list runs with their latest values, and the options in which they differ",
        f"{parser.prog} runs",
        f"{parser.prog} runs runs/first runs/second",
        light=True,
    )
    listing.add_argument(
        "paths", metavar="RUN_OR_DIR", nargs="*", default=["runs"], help="runs, or directories of them"
    )

    reproduce = parser.add_verb(
        GROUP,
        "reproduce",
        "reproduce",
        "train the recipe of a run again and compare the weights",
        f"{parser.prog} reproduce runs/vit_mlp",
        module="builder.commands.runs",
    )
    reproduce.add_argument("run", metavar="RUN", help="directory of a finished run")
    reproduce.add_argument(
        "--output", metavar="DIR", help="directory of the new run (default: RUN_reproduced)"
    )
    add_imports(reproduce)
    add_device(reproduce)


def add_train(parser: Parser) -> None:
    """Add the flags of `train`."""
    parser.set_defaults(function="train")
    add_recipe(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="directory of the run (default: `output` of the recipe, or runs/<name>)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run")
    parser.add_argument(
        "--profile", action="store_true", help="report where the time of a step goes, and write a trace"
    )
    add_verify(parser)
    add_device(parser)
