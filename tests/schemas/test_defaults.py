"""Recipes in full, and their differences, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder.recipe.load import load_recipe
from policysmith.schemas import console
from policysmith.schemas.composition import composed, resolved
from policysmith.schemas.errors import CheckpointError
from policysmith.schemas.origins import origin_of, origins
from policysmith.schemas.questions.commands import rendered
from policysmith.schemas.questions.defaults import with_defaults
from policysmith.schemas.questions.difference import differences, side
from policysmith.schemas.yaml.document import parse, read
from policysmith.schemas.yaml.nodes import KeyPath

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = [path for path in sorted(RECIPES.rglob("*.yaml")) if "datasets" not in path.parts]


def test_defaults_of_the_schema_are_those_of_the_models_in_every_recipe() -> None:
    for path in ALL:
        document = resolved(composed(read(path)))
        assert with_defaults(document.value) == load_recipe(document).resolved(), path


def test_a_recipe_is_itself_and_differs_by_what_it_changes(tmp_path: Path) -> None:
    act = RECIPES / "tiny" / "act.yaml"
    assert differences(side(act), side(act)) == []
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"base: {act}\nname: mine\npolicy: {{head: {{width: 64}}, backbones: {{proprio: null}}}}\n"
        "transforms: [{type: normalize_image, stats: half}, {type: normalize}]\ntraining: {seed: 0}\n"
    )
    found = {
        str(difference).partition(":")[0]: difference for difference in differences(side(act), side(mine))
    }
    assert sorted(found) == ["name", "policy.backbones.proprio", "policy.head.width", "transforms[0].stats"]
    assert str(found["policy.head.width"]) == f"policy.head.width: 32 -> 64  ({act}:20:12 -> {mine}:3:24)"
    assert str(found["policy.backbones.proprio"]).startswith("policy.backbones.proprio: only left: ")
    assert found["transforms[0].stats"].values == {"left": "imagenet", "right": "half"}


def test_a_part_of_another_type_differs_as_a_whole(tmp_path: Path) -> None:
    act = RECIPES / "tiny" / "act.yaml"
    (tmp_path / "mine.yaml").write_text(f"base: {act}\npolicy: {{head: {{type: mlp}}}}\n")
    (found,) = differences(side(act), side(tmp_path / "mine.yaml"))
    assert found.path == ("policy", "head")
    assert [value["type"] for value in found.values.values()] == ["act", "mlp"]


def test_a_directory_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        side(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": 3}')
    with pytest.raises(CheckpointError, match="holds no recipe"):
        side(tmp_path)


def test_a_rendered_recipe_is_the_recipe_with_and_without_origins() -> None:
    for path in ALL:
        document = resolved(composed(read(path)))
        wanted = with_defaults(document.value)
        for shown in (None, origins(document)):
            text = rendered(wanted, shown)
            assert parse(text).value == wanted, path
        assert text.count("#") >= len(origins(document)) // 2


def test_every_value_of_every_recipe_has_its_origin() -> None:
    def values(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
        if isinstance(value, dict | list) and value:
            for step, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from values(item, (*path, step))
        else:
            yield path, value

    for path in ALL:
        document = resolved(composed(read(path)))
        places, set_here = origins(document), dict(values(document.value, ()))
        for where, _ in values(with_defaults(document.value), ()):
            place = origin_of(where, places)
            assert (place == "default") == (where not in set_here), (path, where)
            if place != "default":
                name, line, _ = place.rsplit(":", 2)
                step = next(step for step in reversed(where) if isinstance(step, str))
                assert step in Path(name).read_text().splitlines()[int(line) - 1], (path, where)


def test_origins_name_file_override_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    act = RECIPES / "tiny" / "act.yaml"
    assert console.policysmith(["render", str(act), "--origins", "-o", "training.seed=3"]) == console.OK
    lines = {line.split(":")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["width"].endswith(f"# {act}:20:12")
    assert lines["seed"].endswith("# -o training.seed=3")
    assert lines["accumulate"].endswith("# default")


def test_the_console_tells_whether_recipes_differ(capsys: pytest.CaptureFixture[str]) -> None:
    act, pi0 = (str(RECIPES / "tiny" / f"{name}.yaml") for name in ("act", "pi0"))
    assert console.policysmith(["diff", act, act]) == 0
    assert capsys.readouterr().out == ""
    assert console.policysmith(["diff", act, pi0, "--format", "json"]) == 1
    paths = [difference["path"] for difference in json.loads(capsys.readouterr().out)]
    assert {"name", "policy.head"} <= set(paths)
