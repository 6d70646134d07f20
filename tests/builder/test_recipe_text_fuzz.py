"""The text of every tiny recipe, damaged at random: a RecipeError with places, or a recipe; soon, and nothing else."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from policysmith.builder.recipe.load import load_recipe
from policysmith.schemas.errors import RecipeError
from policysmith.schemas.terminal import printable
from policysmith.schemas.yaml.document import parse

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "tiny").glob("*.yaml"))
PIECES = (
    "\0", "\t", "\x1b[31m", "\u202e", "\ufffe", "'", '"', "{", "}", "[", "]", "[" * 60, "{a: " * 60, "&a ", "*a",
    "!!python/object:os.system x", "%TAG ! x\n", "---\n", "...\n", "<<: ", "? ", "- ", ": ", "#", "|\n", ">\n", "@",
    "9" * 5_000, "1e999", ".nan", "-.inf", "0x" + "f" * 100, "~", "null", "true", "x" * 20_000, "a.b", "\u0661",
    "2001-01-01", "a: &x [*x]\n", "\r", "\\", "\ud800", "None", "composed", "mlp", "type: ",
)  # fmt: skip
SECONDS = 5.0


def damaged(text: str, draw: random.Random) -> str:
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, end = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
        end = min(end, at + draw.choice((1, 4, 40)))
        how = draw.randrange(5)
        if how == 0:
            text = text[:at] + text[end:]
        elif how == 1:
            text = text[:at] + draw.choice(PIECES) + text[at:]
        elif how == 2:
            text = text[:at] + draw.choice(PIECES) + text[end:]
        elif how == 3:
            text = text[:at] + text[at:end] * draw.choice((2, 50)) + text[end:]
        else:
            lines = text.split("\n")
            draw.shuffle(lines)
            text = "\n".join(lines)
    return text


@pytest.mark.parametrize("count", [60, pytest.param(2_000, marks=pytest.mark.slow)])
def test_damaged_text_ends_in_findings_or_in_a_recipe(count: int) -> None:
    draw = random.Random(count)
    refused = 0
    for number in range(count):
        text = damaged(draw.choice(RECIPES).read_text(encoding="utf-8"), draw)
        start = time.process_time()
        try:
            load_recipe(parse(text))
        except RecipeError as error:
            refused += 1
            said = str(error)
            assert said == printable(said), number
            assert len(said) < 200_000, number
        assert time.process_time() - start < SECONDS, text[:2_000]
    assert refused > count / 2
