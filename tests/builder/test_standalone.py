"""A run says what it trained: its own recipe trains the same again, from anywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policysmith.builder import Builder
from policysmith.builder.recipe.standalone import same_spelling, standalone
from policysmith.schemas import overrides
from policysmith.schemas.yaml.document import parse

RECIPE = """\
# What this is, and what to expect.
recipe: 1
name: mine   # ours
data: {path: demos, horizon: 4, episodes: [0, 1]}
policy:
  backbones:
    # The body.
    proprio: {type: mlp, hidden: [8], width: 8}
  head: {type: mlp, hidden: [16]}   # small
transforms:
  - {type: normalize, mode: mean_std}
training:
  steps: 9
  batch_size: 4
"""


def test_a_run_reproduces_from_its_own_folder(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(tiny["data"]["path"], home / "demos")
    (home / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(home)
    changes = (["training.steps=3", "training.optimizer.lr=1e-3", "policy.head.hidden=[12]"],)
    Builder(Path("mine.yaml"), changes).train(output="run", device="cpu")
    (home / "mine.yaml").unlink()
    monkeypatch.chdir("/")
    Builder.from_recipe(home / "run" / "recipe.yaml").train(output=tmp_path / "again", device="cpu")
    one, two = (load_file(run / "policy" / "model.safetensors") for run in (home / "run", tmp_path / "again"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    text = (home / "run" / "recipe.yaml").read_text()
    for kept in ("# What this is", "# ours", "# The body.", "# small"):
        assert kept in text
    assert (home / "run" / "policy" / "recipe.yaml").read_text() != text  # no path of this machine
    assert "path: demos" in (home / "run" / "policy" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["training.steps=10"],
        ["training.optimizer.lr=1e-8"],
        ["training.optimizer.groups=[{match: a, lr_scale: 0.5}]"],
        ["transforms=[]"],
        ["transforms.0.mode=min_max", "data.episodes=null"],
        ["meta.note='yes'", "meta.text='1e-8'", 'meta.other="a: b # c"'],
    ],
)
def test_overrides_stand_in_the_text(changes: list[str]) -> None:
    document = overrides.apply(parse(RECIPE), changes)
    text = standalone(document, located=False)
    assert parse(text).value == document.value
    assert text.startswith("# What this is")
    assert (text == RECIPE) == (not changes)


def test_what_cannot_be_changed_in_place_is_written_anew() -> None:
    shared = RECIPE.replace("hidden: [8]", "hidden: &sizes [8]").replace("hidden: [16]", "hidden: *sizes")
    document = overrides.apply(parse(shared), ["policy.head.hidden.0=9"])
    assert document.value["policy"]["backbones"]["proprio"]["hidden"] == [8]
    assert parse(standalone(document, located=False)).value == document.value


def test_a_recipe_that_never_was_text_is_written_too(tiny: dict[str, Any]) -> None:
    document = Builder.from_recipe(tiny).recipe.document
    assert parse(standalone(document, located=True)).value == json.loads(json.dumps(tiny))


def test_a_moved_dataset_is_the_same_dataset(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"] |= {"steps": 2}
    shutil.copytree(tiny["data"]["path"], tmp_path / "elsewhere")
    builder = Builder.from_recipe(tiny)
    builder.train(output=tmp_path / "run", device="cpu")
    moved = builder.override({"data.path": str(tmp_path / "elsewhere"), "training.steps": 4})
    moved.train(output=tmp_path / "run", resume=True, device="cpu")
    notes = (tmp_path / "run" / "log.jsonl").read_text()
    assert (
        "`training.steps` was 2 and is 4: from step 2 on the rate follows the cosine schedule of 4" in notes
    )
    assert (tmp_path / "run" / "policy").readlink().name == "step-00000004"


@pytest.mark.parametrize("kept", ["here/schema.json", "https://example.org/schema.json"])
def test_the_header_for_editors_resolves_from_the_run(kept: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "schema.json").write_text("{}")
    for given in ("../schemas/gone.json", kept):
        header = f"# yaml-language-server: $schema={given}\n"
        document = replace(parse(header + RECIPE), directory=tmp_path)
        first, *rest = standalone(document, located=True).splitlines()
        named = first.partition("$schema=")[2]
        assert named == given if "://" in given else Path(named).is_absolute() and Path(named).is_file()
        assert rest == RECIPE.splitlines()
        assert standalone(document, located=False).startswith(header)


def test_a_run_goes_on_from_its_own_recipe_where_paths_became_absolute(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["policy"]["backbones"] = {"proprio": {"type": "mlp", "hidden": [], "width": 4}}
    tiny |= {"transforms": [], "training": {"steps": 1, "batch_size": 4}}
    Builder.from_recipe(tiny).train(output=tmp_path / "first", device="cpu")
    tiny["policy"]["init"] = "first"
    (tmp_path / "second.yaml").write_text(json.dumps(tiny))
    monkeypatch.chdir(tmp_path)
    Builder.from_recipe("second.yaml").train(output="second", device="cpu")
    own = Builder.from_recipe("second/recipe.yaml").override({"training.steps": 2})
    assert own.recipe.sections.policy.init == str(tmp_path / "first")
    assert own.train(output="second", resume=True, device="cpu").taken == 1
    again = Builder.from_recipe("second.yaml").override({"training.steps": 3})
    assert again.train(output="second", resume=True, device="cpu").taken == 1


def test_only_paths_of_the_same_files_are_spelled_alike(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    before = {"policy": {"backbones": {"vision": {"pretrained": "weights", "tokenizer": "gone"}}}}
    recipe = {
        "policy": {"backbones": {"vision": {"pretrained": str(tmp_path / "weights"), "tokenizer": "other"}}}
    }
    found = same_spelling(recipe, Path("/"), before, tmp_path)
    assert found == {"policy": {"backbones": {"vision": {"pretrained": "weights", "tokenizer": "other"}}}}
    assert same_spelling(recipe, Path("/"), before, tmp_path / "weights") == recipe
