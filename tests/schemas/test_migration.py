"""Migration of recipes to a later version of the language."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from policysmith.builder.recipe.load import load_recipe
from policysmith.schemas import console, migration
from policysmith.schemas.errors import RecipeError
from policysmith.schemas.migration import LATEST, STEPS, Changed, Removed, Renamed, migrated
from policysmith.schemas.recipe import Recipe
from policysmith.schemas.yaml.document import parse, read

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "tests" / "fixtures" / "recipes").glob("*.json"))
RELEASED = {
    text: (path.stem, name) for path in reversed(KEPT) for name, text in json.loads(path.read_text()).items()
}
CHANGED = [
    place
    for text, place in RELEASED.items()
    if not (now := ROOT / place[1]).exists() or now.read_text() != text
]
STEP = {
    1: (
        Renamed("training.rate", to="lr"),
        Renamed("policy.backbones.*.hidden", of="mlp", to="widths"),
        Renamed("transforms.*.px", to="pixels"),
        Changed("policy.head.loss", value=lambda loss: {"l1": "mae"}.get(loss, loss)),
        Removed("training.float8", why="it gained little"),
        Removed("policy.necks", why="none are left"),
        Removed("meta.*", why="notes are comments"),
    )
}
BEFORE = """\
# A recipe of the first version
recipe: 1  # the language
name: mine
policy:
  backbones:
    proprio: {type: mlp, hidden: [8, 8]}   # small
    vision: {type: conv, hidden: [8]}
  # The necks,
  # which are many
  necks:
    a: {type: film}
    # inside

  head: {type: mlp, loss: l1}
transforms:
  - {type: shift, px: 4}
  - type: shift
    px: 5  # more
training: {float8: rowwise, rate: 1.0e-3, steps: 10}
meta: {one: [1, {two: 2}], three: }
"""
AFTER = """\
# A recipe of the first version
recipe: 2  # the language
name: mine
policy:
  backbones:
    proprio: {type: mlp, widths: [8, 8]}   # small
    vision: {type: conv, hidden: [8]}
    # inside

  head: {type: mlp, loss: "mae"}
transforms:
  - {type: shift, pixels: 4}
  - type: shift
    pixels: 5  # more
training: {lr: 1.0e-3, steps: 10}
meta: {}
"""


def test_a_step_changes_what_it_names_and_keeps_the_rest() -> None:
    after, said = migrated(BEFORE, "mine.yaml", steps=STEP, latest=2)
    assert after == AFTER
    assert migrated(after, steps=STEP, latest=2) == (after, [])
    assert said[0] == "mine.yaml:19:29: `training.rate` is now called `lr`"
    assert 'mine.yaml:14:21: `policy.head.loss` was "l1" and is "mae"' in said
    assert len(said) == 9


def test_steps_follow_one_another_and_json_is_migrated_too() -> None:
    steps = {1: (Renamed("training.rate", to="speed"),), 2: (Renamed("training.speed", to="lr"),)}
    recipe = {"training": {"rate": 1, "steps": 2}, "recipe": 1}
    for indent in (None, 2):
        text, said = migrated(json.dumps(recipe, indent=indent), steps=steps, latest=3)
        assert parse(text).value == {"training": {"lr": 1, "steps": 2}, "recipe": 3}
        assert len(said) == 2


@pytest.mark.parametrize("version", [0, 2, 1.0, True, "1", None])
def test_unknown_versions_are_refused(version: Any) -> None:
    with pytest.raises(RecipeError, match="must be a version from 1 to 1") as caught:
        migrated(f"recipe: {json.dumps(version)}\n")
    assert ("update policysmith" in str(caught.value)) == (version == 2)


def test_every_version_has_its_step() -> None:
    assert sorted(STEPS) == list(range(1, LATEST))
    assert get_args(Recipe.model_fields["recipe"].annotation) == (LATEST,)


def test_the_verb_migrates_a_recipe_and_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("recipe: 1\ntraining: {rate: 1}\n")
    mine.write_text("base: base.yaml\ntraining: {rate: 2}  # faster\n")
    assert console.policysmith(["migrate", str(mine)]) == console.OK
    assert capsys.readouterr().out == f"{mine}: has version 1\n"
    later = migrated.__kwdefaults__ | {"steps": STEP, "latest": 2}
    monkeypatch.setattr(migrated, "__kwdefaults__", later)
    monkeypatch.setattr(migration, "LATEST", 2)
    assert console.policysmith(["migrate", "--check", str(base), str(mine)]) == 1
    assert f"{mine}: would be migrated to 2" in capsys.readouterr().out
    assert console.policysmith(["migrate", str(base), str(mine)]) == console.OK
    assert base.read_text() == "recipe: 2\ntraining: {lr: 1}\n"
    assert mine.read_text() == "base: base.yaml\ntraining: {lr: 2}  # faster\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"recipe: 1\ntraining: {rate: 3}\n")))
    capsys.readouterr()
    assert console.policysmith(["migrate", "-"]) == console.OK
    assert capsys.readouterr().out == "recipe: 2\ntraining: {lr: 3}\n"


def test_the_recipes_of_every_release_are_kept() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = [
        line.split("[")[1].split("]")[0]
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## [") and "Unreleased" not in line
    ]
    assert project["version"] in released
    assert sorted(released) == [path.stem for path in KEPT]


@pytest.mark.parametrize(("version", "name"), CHANGED)
def test_recipes_of_every_release_are_valid_after_migration(version: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    texts = json.loads((ROOT / "tests" / "fixtures" / "recipes" / f"{version}.json").read_text())
    path.write_text(migrated(texts[name], name)[0])
    assert load_recipe(read(path)).sections.recipe == LATEST
