"""Flags of the verbs about training and runs."""

from __future__ import annotations

from .parser import Parser, add_device, add_imports, add_recipe, add_verify, count, positive

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

    sweep = parser.add_verb(
        GROUP,
        "sweep",
        "sweep",
        "train a recipe many times over ranges of its values, and compare",
        f"{parser.prog} sweep recipes/vit_mlp.yaml -s 'training.optimizer.lr=log(1e-4,1e-2)' --trials 20",
        f"{parser.prog} sweep recipes/vit_mlp.yaml -s training.seed=0,1,2 -s 'policy.head.hidden=[64],[256]' --method grid",
        module="builder.commands.sweeps",
    )
    add_recipe(sweep)
    sweep.add_argument(
        "-s",
        dest="search",
        metavar="PATH=VALUES",
        action="append",
        default=[],
        help="values to try: 64,128 or uniform(a,b), log(a,b), int(a,b), intlog(a,b); with a third number, points of a grid; repeatable",
    )
    sweep.add_argument(
        "--method",
        choices=("grid", "random", "halving", "tpe"),
        default="random",
        help="grid: all combinations; halving: ever fewer trials for ever more steps; tpe: Optuna's (default: random)",
    )
    sweep.add_argument(
        "--trials", type=positive, default=20, help="number of trials, except of a grid (default: 20)"
    )
    sweep.add_argument(
        "--metric",
        metavar="NAME",
        help="value to compare (default: validation/loss if it is measured, else loss)",
    )
    sweep.add_argument("--jobs", type=positive, help="trials at the same time (default: one a GPU, or one)")
    sweep.add_argument("--seed", type=count, default=0, help="seed of the drawn values (default: 0)")
    sweep.add_argument("--output", metavar="DIR", help="directory of the sweep (default: sweeps/<name>)")
    add_device(sweep)

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
