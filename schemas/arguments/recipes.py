"""Flags of the verbs about recipes."""

from __future__ import annotations

import sys

from ..kinds import KINDS
from .parser import Parser, add_format, add_imports, add_recipe, gibibytes

GROUP = "recipes"


def add(parser: Parser) -> None:
    """Add the verbs about recipes."""
    new = parser.add_verb(
        GROUP,
        "new",
        "new",
        "write a recipe for a dataset",
        "policysmith new",
        "policysmith new --data datasets/mine",
        "policysmith new --data datasets/mine --policy act --gpu 24GB --out mine.yaml",
        "policysmith new --data datasets/mine --from recipes/tiny/act.yaml",
        module="builder.commands.recipes",
    )
    new.add_argument(
        "--data",
        metavar="DIR",
        required=sys.stdin is None or not sys.stdin.isatty(),
        help="directory of a LeRobot dataset (default: asked for, on a terminal)",
    )
    source = new.add_mutually_exclusive_group()
    source.add_argument(
        "--policy",
        metavar="NAME",
        help="ready-made recipe to adapt, such as act (default: one that suits the data)",
    )
    source.add_argument(
        "--from",
        dest="base",
        metavar="RECIPE|POLICY",
        help="recipe to adapt; or run, checkpoint or policy on the hub to fine-tune",
    )
    add_imports(new)
    _add_gpu(new)
    new.add_argument("--out", metavar="FILE", help="new recipe (default: NAME.yaml)")

    check = parser.add_verb(
        GROUP,
        "check",
        "check",
        "validate a recipe and show the sizes of its policy",
        "policysmith check recipes/vit_mlp.yaml",
        "policysmith check recipes/vit_mlp.yaml --fix",
        "policysmith check recipes/vit_mlp.yaml --format github",
    )
    add_recipe(check)
    add_format(check, "json", "sarif", "github")
    check.add_argument(
        "--deep",
        action="store_true",
        help="also open every video, and take a batch of real samples through the policy",
    )
    check.add_argument(
        "--fix",
        action="store_true",
        help="correct the recipe's text where one answer is right; comments stay",
    )

    render = parser.add_verb(
        GROUP,
        "render",
        "render",
        "print a recipe with every default filled in",
        "policysmith render recipes/vit_mlp.yaml",
        "policysmith render recipes/vit_mlp.yaml --origins",
        light=True,
    )
    add_recipe(render)
    render.add_argument(
        "--origins", action="store_true", help="add the place that sets each value, as a comment"
    )

    diff = parser.add_verb(
        GROUP,
        "diff",
        "diff",
        "compare two recipes, runs or checkpoints value by value, with defaults filled in",
        "policysmith diff recipes/vit_mlp.yaml runs/vit_mlp",
        light=True,
    )
    diff.add_argument("left", metavar="A", help="recipe, run or checkpoint")
    diff.add_argument(
        "right", metavar="B", help="recipe, run or checkpoint; the exit code is 1 if they differ"
    )
    add_format(diff, "json")

    listing = parser.add_verb(
        GROUP,
        "list",
        "listing",
        "list the available parts",
        "policysmith list",
        "policysmith list heads",
        light=True,
    )
    listing.add_argument("kind", nargs="?", choices=(*KINDS, "policies"), help="list only this kind")

    explain = parser.add_verb(
        GROUP,
        "explain",
        "explain",
        "describe a part, a section of a recipe, or an error code",
        "policysmith explain backbones.vit",
        "policysmith explain training.optimizer",
        "policysmith explain E003",
        light=True,
    )
    explain.add_argument(
        "topic", help="a part, an option, a section, a kind or an error code, such as backbones.vit or E003"
    )

    fmt = parser.add_verb(
        GROUP,
        "fmt",
        "fmt",
        "lay out recipes in canonical order, comments kept",
        "policysmith fmt recipes/vit_mlp.yaml",
        "policysmith fmt --check recipes/vit_mlp.yaml recipes/act.yaml",
        light=True,
    )
    _add_rewritten(fmt)

    graph = parser.add_verb(
        GROUP,
        "graph",
        "graph",
        "draw the parts of a policy, with shapes and parameters",
        "policysmith graph recipes/vit_mlp.yaml",
        "policysmith graph recipes/vit_mlp.yaml --format svg > vit_mlp.svg",
        module="builder.commands.recipes",
    )
    add_recipe(graph)
    graph.add_argument(
        "--format", choices=("mermaid", "svg"), default="mermaid", help="format (default: mermaid)"
    )

    summary = parser.add_verb(
        GROUP,
        "summary",
        "summary",
        "show parameters, memory and operations of a policy, and what would make it fit",
        "policysmith summary recipes/vit_mlp.yaml",
        "policysmith summary recipes/vit_mlp.yaml --gpu 24GB",
        module="builder.commands.recipes",
    )
    add_recipe(summary)
    _add_gpu(summary)

    migrate = parser.add_verb(
        GROUP,
        "migrate",
        "migrate",
        "bring recipes to the latest version of the language, comments kept",
        "policysmith migrate recipes/vit_mlp.yaml",
        "policysmith migrate --check recipes/vit_mlp.yaml recipes/act.yaml",
        light=True,
    )
    _add_rewritten(migrate)

    schema = parser.add_verb(
        GROUP,
        "schema",
        "schema",
        "print the JSON Schema of recipes, by which editors complete and check them",
        "policysmith schema --out recipe.json",
        "policysmith schema --out recipe.json --with-plugins my_parts.py",
    )
    schema.add_argument("--out", metavar="FILE", help="write it to this file (default: stdout)")
    schema.add_argument("--write", action="store_true", help="write it to schemas/recipe.v1.json")
    schema.add_argument(
        "--with-plugins",
        nargs="*",
        metavar="FILE",
        help="add the parts of installed plug-ins, and those that these Python files or modules register",
    )


def _add_rewritten(parser: Parser) -> None:
    """Add the recipes that a verb rewrites, and the option to check them alone."""
    parser.add_argument("files", metavar="RECIPE", nargs="+", help="recipes, or - for stdin to stdout")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a recipe would change"
    )


def _add_gpu(parser: Parser) -> None:
    parser.add_argument(
        "--gpu", type=gibibytes, metavar="24GB", help="memory of the GPU (default: that of this machine's)"
    )
