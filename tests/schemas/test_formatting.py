"""`policysmith fmt`: order and spacing change; values and comments do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policysmith.schemas import console
from policysmith.schemas.formatting import formatted
from policysmith.schemas.yaml.document import parse

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.glob("**/*.yaml"))
MIXED = """\
# header

training:

  # how long
  steps: 10\x20\x20
  optimizer: {lr: 1.0e-3}
  batch_size: 4  # small



# what it is called
name: x
policy:
  head:
    hidden: [8]
    # the kind
    type: mlp
  backbones: {a: {type: state}}
transforms:
  - type: resize
    size: 8
  # last
  - size: 4
    type: resize
recipe: 1
data: {path: d}
"""
TIDY = """\
# header

recipe: 1
# what it is called
name: x
data: {path: d}

policy:
  backbones: {a: {type: state}}
  head:
    # the kind
    type: mlp
    hidden: [8]

transforms:
  - type: resize
    size: 8
  # last
  - size: 4
    type: resize

training:

  # how long
  steps: 10
  batch_size: 4  # small
  optimizer: {lr: 1.0e-3}
"""


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(RECIPES)))
def test_ready_made_recipes_are_tidy(path: Path) -> None:
    assert formatted(path.read_text()) == path.read_text()


def test_sections_and_keys_are_sorted_with_their_comments() -> None:
    assert formatted(MIXED) == TIDY
    assert formatted(TIDY) == TIDY


@given(st.data())
def test_a_shuffled_recipe_keeps_its_values_and_comments(data: st.DataObject) -> None:
    """Sections in any order come out the same; a header of the file stays on top."""
    text = data.draw(st.sampled_from(ALL)).read_text()
    head, _, body = text.partition("\nrecipe: 1\n")
    sections = [f"{section}\n" for section in f"recipe: 1\n\n{body}".rstrip().split("\n\n")]
    shuffled = f"{head}\n" + "\n".join(data.draw(st.permutations(sections)))
    tidy = formatted(shuffled)
    assert parse(tidy).value == parse(text).value
    assert [line for line in tidy.splitlines() if line] == [line for line in text.splitlines() if line]


def test_files_are_changed_in_place_and_check_changes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(MIXED)
    assert console.policysmith(["fmt", "--check", str(path)]) == 1
    assert path.read_text() == MIXED
    assert console.policysmith(["fmt", str(path)]) == console.OK
    assert path.read_text() == TIDY
    assert console.policysmith(["fmt", "--check", str(path)]) == console.OK
    assert capsys.readouterr().out == f"would reformat {path}\nreformatted {path}\n"
