"""Command-line flags. `function` of the parsed arguments names a function of `policysmith.builder.cli`."""

from __future__ import annotations

import math
import sys
from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from typing import Any

from .kinds import KINDS

_START = """\
start here:
  policysmith check recipes/vit_mlp.yaml             validate a recipe
  build-and-train recipes/vit_mlp.yaml               train it; the run goes to runs/vit_mlp
  policysmith evaluate runs/vit_mlp                  evaluate the trained policy
  policysmith explain training                       describe options and their defaults

`policysmith VERB --help` shows the flags of a verb, with examples.
"""


def build_and_train() -> ArgumentParser:
    """Return the parser of `build-and-train`."""
    parser = _parser(
        "build-and-train",
        "Build the policy of a recipe and train it.",
        "build-and-train recipes/vit_mlp.yaml",
        "build-and-train recipes/vit_mlp.yaml -o training.steps=100 -o policy.head.hidden=[64, 64]",
        "build-and-train recipes/vit_mlp.yaml --resume",
        "torchrun --no-python --nproc-per-node 2 build-and-train recipes/vit_mlp.yaml",
    )
    parser.set_defaults(function="train")
    _recipe(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="directory of the run (default: `output` of the recipe, or runs/<name>)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run")
    parser.add_argument(
        "--profile", action="store_true", help="report where the time of a step goes, and write a trace"
    )
    _verify(parser)
    _device(parser)
    return parser


def policysmith() -> ArgumentParser:
    """Return the parser of `policysmith`."""
    parser = _parser("policysmith", "Compose, train and evaluate robot policies.")
    parser.epilog = _START
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")

    check = _verb(
        verbs,
        "check",
        "check",
        "validate a recipe and show the sizes of its policy",
        "policysmith check recipes/vit_mlp.yaml",
        "policysmith check recipes/vit_mlp.yaml --format json",
    )
    _recipe(check)
    check.add_argument(
        "--format", choices=("text", "json"), default="text", help="format of the report (default: text)"
    )

    render = _verb(
        verbs,
        "render",
        "render",
        "print a recipe with every default filled in",
        "policysmith render recipes/vit_mlp.yaml",
        "policysmith render recipes/vit_mlp.yaml --origins",
    )
    _recipe(render)
    render.add_argument(
        "--origins", action="store_true", help="add the place that sets each value, as a comment"
    )
    render.set_defaults(light=True)

    diff = _verb(
        verbs,
        "diff",
        "diff",
        "compare two recipes, runs or checkpoints value by value, with defaults filled in",
        "policysmith diff recipes/vit_mlp.yaml runs/vit_mlp",
    )
    diff.add_argument("left", metavar="A", help="recipe, run or checkpoint")
    diff.add_argument(
        "right", metavar="B", help="recipe, run or checkpoint; the exit code is 1 if they differ"
    )
    diff.add_argument(
        "--format", choices=("text", "json"), default="text", help="format of the report (default: text)"
    )
    diff.set_defaults(light=True)

    listing = _verb(
        verbs, "list", "listing", "list the available parts", "policysmith list", "policysmith list heads"
    )
    listing.set_defaults(light=True)
    listing.add_argument("kind", nargs="?", choices=(*KINDS, "policies"), help="list only this kind")

    explain = _verb(
        verbs,
        "explain",
        "explain",
        "describe a part, a section of a recipe, or an error code",
        "policysmith explain backbones.vit",
        "policysmith explain training.optimizer",
        "policysmith explain E003",
    )
    explain.add_argument(
        "topic", help="a part, an option, a section, a kind or an error code, such as backbones.vit or E003"
    )
    explain.set_defaults(light=True)

    schema = _verb(
        verbs, "schema", "schema", "print the JSON Schema of recipes", "policysmith schema > recipe.json"
    )
    schema.add_argument("--write", action="store_true", help="write it to schemas/recipe.v1.json instead")

    evaluate = _verb(
        verbs,
        "evaluate",
        "evaluate",
        "evaluate a trained policy, in simulation and on held-out episodes",
        "policysmith evaluate runs/vit_mlp",
        "policysmith evaluate runs/vit_mlp --env metaworld/drawer-open-v3 --episodes 50 --control blind",
        "policysmith evaluate runs/vit_mlp --open-loop",
    )
    _checkpoint(evaluate)
    evaluate.add_argument("--env", help="environment (default: that of the recipe)")
    evaluate.add_argument("--embodiment", help="robot to evaluate, of several (default: that of the recipe)")
    evaluate.add_argument(
        "--episodes", type=_positive, help="number of rollouts (default: that of the recipe)"
    )
    evaluate.add_argument(
        "--seed", type=_count, help="seed of the first rollout (default: that of the recipe)"
    )
    evaluate.add_argument(
        "--control", choices=("none", "blind"), help="compare with the same recipe trained without cameras"
    )
    evaluate.add_argument(
        "--open-loop", action="store_true", help="only the error on held-out episodes, without a simulator"
    )
    evaluate.add_argument("--output", metavar="DIR", help="directory of the report (default: in the run)")
    _imports(evaluate)
    _verify(evaluate)
    _device(evaluate)

    import_lerobot = _verb(
        verbs,
        "import-lerobot",
        "import_lerobot",
        "convert a LeRobot policy into a checkpoint",
        "policysmith import-lerobot act_aloha --data datasets/aloha --output imported",
    )
    import_lerobot.add_argument("directory", metavar="DIR", help="LeRobot policy: config.json and weights")
    import_lerobot.add_argument(
        "--data", metavar="PATH", required=True, help="LeRobot dataset with its observations and actions"
    )
    import_lerobot.add_argument(
        "--output", metavar="DIR", required=True, help="directory of the new checkpoint"
    )

    export_lerobot = _verb(
        verbs,
        "export-lerobot",
        "export_lerobot",
        "convert a trained policy into a LeRobot policy",
        "policysmith export-lerobot runs/act --output act_lerobot",
    )
    _checkpoint(export_lerobot)
    export_lerobot.add_argument("--output", metavar="DIR", required=True, help="new directory for the policy")

    export = _verb(
        verbs,
        "export",
        "export",
        "write a trained policy as a standalone checkpoint",
        "policysmith export runs/vit_mlp --output exported",
        "policysmith export runs/pi0_lora --output exported --merge",
    )
    _checkpoint(export)
    export.add_argument("--output", metavar="DIR", required=True, help="directory of the new checkpoint")
    export.add_argument("--merge", action="store_true", help="merge low-rank adapters into the weights")
    _imports(export)
    _verify(export)

    _data_verbs(verbs)
    _cache_verbs(verbs)
    return parser


class _Version(Action):
    """Option that prints the version, which takes 0.2 s to look up, and exits."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, *rest: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"policysmith {version('policysmith')}\n")
        parser.exit()


def _parser(name: str, about: str, *examples: str) -> ArgumentParser:
    parser = ArgumentParser(
        name, description=about, epilog=_examples(examples), formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, dest=SUPPRESS, default=SUPPRESS, help="print the version"
    )
    return parser


def _verb(verbs: Any, name: str, function: str, about: str, *examples: str) -> ArgumentParser:
    parser: ArgumentParser = verbs.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=_examples(examples),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    return parser


def _examples(lines: tuple[str, ...]) -> str | None:
    return "\n  ".join([f"example{'s' * (len(lines) > 1)}:", *lines]) if lines else None


def _data_verbs(verbs: Any) -> None:
    """Add `policysmith data` and its verbs."""
    data = verbs.add_parser("data", help="record or describe demonstrations", description="Demonstrations.")
    data_verbs = data.add_subparsers(metavar="VERB", required=True)
    record = _verb(
        data_verbs,
        "record",
        "data_record",
        "record demonstrations of a scripted expert in simulation",
        "policysmith data record --env metaworld/drawer-open-v3 --episodes 50 --output drawer_open",
    )
    record.add_argument("--env", required=True, help="environment, such as metaworld/drawer-open-v3")
    record.add_argument("--episodes", type=_positive, default=50, help="demonstrations (default: 50)")
    record.add_argument("--output", metavar="DIR", required=True, help="directory of the new dataset")
    record.add_argument(
        "--image-size", type=_positive, default=96, help="side of the images in pixels (default: 96)"
    )
    record.add_argument("--seed", type=_count, default=0, help="seed of the first episode (default: 0)")
    record.add_argument(
        "--noise", type=_spread, default=0.0, help="standard deviation of noise on the actions (default: 0)"
    )
    record.add_argument("--workers", type=_positive, default=1, help="simulator processes (default: 1)")
    info = _verb(
        data_verbs,
        "info",
        "data_info",
        "describe a dataset",
        "policysmith data info recipes/datasets/drawer_open",
    )
    info.add_argument("path", help="directory of a LeRobot dataset")
    convert = _verb(
        data_verbs,
        "convert",
        "data_convert",
        "convert HDF5 of robomimic or ACT, or zarr of Diffusion Policy, into a LeRobot dataset",
        "policysmith data convert demo.hdf5 --output datasets/lift --fps 20 --task 'Lift the cube'",
    )
    convert.add_argument("source", metavar="SOURCE", help=".hdf5 file, directory of them, or .zarr")
    convert.add_argument("--output", metavar="DIR", required=True, help="directory of the new dataset")
    convert.add_argument("--fps", type=_positive, required=True, help="frames per second of the recording")
    convert.add_argument("--task", required=True, help="instruction of all episodes")
    stats = _verb(
        data_verbs,
        "stats",
        "data_stats",
        "print the range and the spread of every dimension, without decoding videos",
        "policysmith data stats recipes/datasets/drawer_open --plot stats.png",
    )
    stats.add_argument("path", help="directory of a LeRobot dataset")
    stats.add_argument("--plot", metavar="FILE", help="write histograms to this image, PDF or SVG")
    check = _verb(
        data_verbs,
        "check",
        "data_check",
        "find faults in a dataset, and what trains badly; exits with 4 for errors, 1 for warnings",
        "policysmith data check recipes/datasets/drawer_open",
    )
    check.add_argument("path", help="directory of a LeRobot dataset")
    check.add_argument(
        "--every-frame", action="store_true", help="decode all frames, not three of each video"
    )


def _cache_verbs(verbs: Any) -> None:
    """Add `policysmith cache` and its verbs."""
    cache = verbs.add_parser("cache", help="list or clear decoded frames", description="Decoded frames.")
    cache_verbs = cache.add_subparsers(metavar="VERB", required=True)
    _verb(
        cache_verbs,
        "list",
        "cache_list",
        "list decoded files, the least recently used first",
        "policysmith cache list",
    )
    _verb(
        cache_verbs,
        "size",
        "cache_size",
        "show how much the cache holds and may hold",
        "policysmith cache size",
    )
    clear = _verb(
        cache_verbs,
        "clear",
        "cache_clear",
        "remove decoded files that no process uses",
        "policysmith cache clear",
        "policysmith cache clear --keep 50GB",
    )
    clear.add_argument(
        "--keep", metavar="SIZE", help="size that may stay, the most recently used (default: nothing)"
    )


def _recipe(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="recipe, a YAML file")
    parser.add_argument(
        "-o",
        dest="override",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="override a value of the recipe, such as training.steps=100; repeatable",
    )
    _imports(parser)


def _checkpoint(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT_OR_RUN", help="a checkpoint, or a run for its last checkpoint"
    )


def _imports(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--allow-imports", action="store_true", help="run the Python files that the recipe imports"
    )


def _verify(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="skip the comparison of checkpoint files with their SHA-256 digests",
    )


def _device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device (default: cuda if available)")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if (number := _count(text)) < 1:
        raise ArgumentTypeError(f"{text!r} is less than 1")
    return number


def _spread(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return number
