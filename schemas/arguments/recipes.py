"""Flags of the verbs about recipes."""

from __future__ import annotations

from ..kinds import KINDS
from .parser import Parser, add_format, add_recipe

GROUP = "recipes"


def add(parser: Parser) -> None:
    """Add the verbs about recipes."""
    check = parser.add_verb(
        GROUP,
        "check",
        "check",
        "validate a recipe and show the sizes of its policy",
        "policysmith check recipes/vit_mlp.yaml",
        "policysmith check recipes/vit_mlp.yaml --format json",
    )
    add_recipe(check)
    add_format(check, "json")

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

    schema = parser.add_verb(
        GROUP, "schema", "schema", "print the JSON Schema of recipes", "policysmith schema > recipe.json"
    )
    schema.add_argument("--write", action="store_true", help="write it to schemas/recipe.v1.json instead")
