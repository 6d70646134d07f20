"""Flags of the command line. Every parser leaves in `function` which function of `policysmith.builder.cli` to call."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from .kinds import KINDS


def build_and_train() -> ArgumentParser:
    """`build-and-train`."""
    parser = ArgumentParser(
        "build-and-train", description="Build the policy that a recipe describes, and train it."
    )
    parser.set_defaults(function="train")
    _recipe(parser)
    parser.add_argument(
        "--output", metavar="DIR", help="directory of the run (default: the recipe's, or runs/<name>)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output directory"
    )
    parser.add_argument(
        "--profile", action="store_true", help="tell where the time of a step goes, and leave a trace of some"
    )
    _verify(parser)
    _device(parser)
    return parser


def policysmith() -> ArgumentParser:
    """`policysmith`."""
    parser = ArgumentParser("policysmith", description="Compose, train and evaluate robot policies.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    check = _verb(verbs, "check", "check", "report every mistake of a recipe, without training")
    _recipe(check)
    check.add_argument(
        "--format", choices=("text", "json"), default="text", help="how to report (default: text)"
    )

    _recipe(_verb(verbs, "render", "render", "print a recipe with every default filled in"))

    listing = _verb(verbs, "list", "listing", "list the parts that recipes can name")
    listing.add_argument("kind", nargs="?", choices=(*KINDS, "policies"), help="only this kind")

    explain = _verb(verbs, "explain", "explain", "describe a part or a section, and its options")
    explain.add_argument("topic", help="such as backbones.vit or training.optimizer")

    schema = _verb(verbs, "schema", "schema", "print the JSON Schema of recipes")
    schema.add_argument("--write", action="store_true", help="write it to schemas/recipe.v1.json instead")

    evaluate = _verb(
        verbs, "evaluate", "evaluate", "judge a trained policy, in simulation or on held-out episodes"
    )
    evaluate.add_argument(
        "checkpoint", metavar="CHECKPOINT_OR_RUN", help="a checkpoint, or a run: its last checkpoint"
    )
    evaluate.add_argument("--env", help="environment (default: the recipe's)")
    evaluate.add_argument("--embodiment", help="which of several robots to judge (default: the recipe's)")
    evaluate.add_argument("--episodes", type=_positive, help="rollouts (default: the recipe's)")
    evaluate.add_argument("--seed", type=_count, help="seed of the first rollout (default: the recipe's)")
    evaluate.add_argument(
        "--control", choices=("none", "blind"), help="compare with a policy that sees no image"
    )
    evaluate.add_argument(
        "--open-loop", action="store_true", help="error on held-out episodes, without simulator"
    )
    evaluate.add_argument("--output", metavar="DIR", help="where the report goes (default: the run)")
    evaluate.add_argument(
        "--allow-imports", action="store_true", help="run the Python files that the recipe imports"
    )
    _verify(evaluate)
    _device(evaluate)

    taken = _verb(verbs, "import-lerobot", "import_lerobot", "turn a policy of LeRobot into one of ours")
    taken.add_argument("directory", metavar="DIR", help="where LeRobot saved it: config.json and weights")
    taken.add_argument(
        "--data", metavar="PATH", required=True, help="LeRobot dataset with its observations and actions"
    )
    taken.add_argument("--output", metavar="DIR", required=True, help="directory of the new checkpoint")
    given = _verb(verbs, "export-lerobot", "export_lerobot", "turn a trained policy into one of LeRobot")
    given.add_argument(
        "checkpoint", metavar="CHECKPOINT_OR_RUN", help="a checkpoint, or a run: its last checkpoint"
    )
    given.add_argument("--output", metavar="DIR", required=True, help="new directory, as LeRobot saves it")
    export = _verb(verbs, "export", "export", "write a trained policy as a checkpoint of its own")
    export.add_argument(
        "checkpoint", metavar="CHECKPOINT_OR_RUN", help="a checkpoint, or a run: its last checkpoint"
    )
    export.add_argument("--output", metavar="DIR", required=True, help="directory of the new checkpoint")
    export.add_argument(
        "--merge", action="store_true", help="add low-rank adapters to the weights beside them"
    )
    export.add_argument(
        "--allow-imports", action="store_true", help="run the Python files that the recipe imports"
    )
    _verify(export)

    data = verbs.add_parser("data", help="record or inspect demonstrations", description="Demonstrations.")
    data_verbs = data.add_subparsers(metavar="VERB", required=True)
    record = _verb(data_verbs, "record", "data_record", "record scripted demonstrations in simulation")
    record.add_argument("--env", required=True, help="environment, such as metaworld/drawer-open-v3")
    record.add_argument("--episodes", type=_positive, default=50, help="demonstrations (default: 50)")
    record.add_argument("--output", metavar="DIR", required=True, help="directory of the new dataset")
    record.add_argument("--image-size", type=_positive, default=96, help="pixels a side (default: 96)")
    record.add_argument("--seed", type=_count, default=0, help="seed of the first episode (default: 0)")
    record.add_argument(
        "--noise", type=_spread, default=0.0, help="spread of the noise on actions (default: 0)"
    )
    record.add_argument("--workers", type=_positive, default=1, help="processes that simulate (default: 1)")
    info = _verb(data_verbs, "info", "data_info", "describe a dataset")
    info.add_argument("path", help="directory of a LeRobot dataset")
    return parser


def _verb(verbs: Any, name: str, function: str, about: str) -> ArgumentParser:
    parser: ArgumentParser = verbs.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(function=function)
    return parser


def _recipe(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file")
    parser.add_argument(
        "-o",
        dest="override",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change a value of the recipe, such as training.steps=100; can be given many times",
    )
    parser.add_argument(
        "--allow-imports", action="store_true", help="run the Python files that the recipe imports"
    )


def _verify(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="take the files of a checkpoint as they are, without the digests of its manifest",
    )


def _device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if (number := _count(text)) < 1:
        raise ArgumentTypeError(f"{text!r} is not at least 1")
    return number


def _spread(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return number
