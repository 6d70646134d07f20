"""Command-line flags, one module a group of verbs.

`function` of the parsed arguments names a function of `builder.cli`, or of the `module` that is set beside it.
"""

from __future__ import annotations

from . import data, deployment, machine, policies, recipes, training
from .parser import Parser, program

_START = """\
Compose, train and evaluate robot policies.

start here:
  policysmith check recipes/vit_mlp.yaml      validate a recipe
  policysmith train recipes/vit_mlp.yaml      train it; the run goes to runs/vit_mlp
  policysmith evaluate runs/vit_mlp           evaluate the trained policy
  policysmith explain training                describe options and their defaults
"""


def build_and_train() -> Parser:
    """Return the parser of `build-and-train`, an alias of `policysmith train`."""
    parser = program(
        "build-and-train", "Build the policy of a recipe and train it.", *training.examples("build-and-train")
    )
    training.add_train(parser)
    return parser


def policysmith() -> Parser:
    """Return the parser of `policysmith`."""
    parser = program("policysmith", _START)
    for group in (recipes, training, policies, deployment, data, machine):
        group.add(parser)
    return parser


__all__ = ["build_and_train", "policysmith"]
