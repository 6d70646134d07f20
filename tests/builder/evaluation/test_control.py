"""The blind control: what is taken out of a recipe, and when it is trained anew."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder import Builder
from policysmith.builder.evaluation import blind, evaluate
from policysmith.builder.evaluation.blind_control import BlindControl
from policysmith.builder.planning.checks.compatibility import needs_of
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.components.registry import BACKBONES
from policysmith.schemas.errors import CheckpointError, RecipeError, SpecError

VISION = {"type": "vit", "patch_size": 16, "width": 16, "depth": 1, "heads": 2}
WRIST = {**VISION, "reads": ["observation.images.corner2"]}
PROPRIO = {"type": "mlp", "hidden": [8], "width": 8}


def resolved(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return Builder.from_recipe(recipe).override(changes).recipe.resolved()


def test_exactly_the_camera_parts_go(tiny: dict[str, Any]) -> None:
    tiny["evaluation"] = {"env": "metaworld/drawer-open-v3", "control": "blind"}
    before = resolved(tiny)
    after = blind(before)
    assert after["name"] == "tiny_blind"
    assert list(after["policy"]["backbones"]) == ["proprio"]
    assert [raw["type"] for raw in after["transforms"]] == ["normalize"]
    assert after["evaluation"]["control"] == "none"
    expected = {**before, "name": "tiny_blind", "transforms": before["transforms"][-1:]}
    expected["evaluation"] = {**before["evaluation"], "control": "none"}
    expected["policy"] = {
        **before["policy"],
        "backbones": {"proprio": before["policy"]["backbones"]["proprio"]},
    }
    assert after == expected
    assert before == resolved(tiny)
    assert Builder.from_recipe(after).check().summary.parts.keys() == {"backbones.proprio", "head"}  # type: ignore[union-attr]


def test_several_backbones_their_patterns_and_sizes(tiny: dict[str, Any]) -> None:
    changes: dict[str, Any] = {
        "policy.backbones": {"vision": VISION, "wrist": WRIST, "proprio": PROPRIO, "second": PROPRIO},
        "policy.head": {
            "type": "mlp",
            "reads": ["second", "vision.tokens", "proprio.tokens", "wrist.pooled"],
            "in_dim": 16 * 4 + 16 + 8 + 8,
        },
        "policy.freeze": ["backbones.vision.*", "backbones.*.model.*", "backbones.second.*"],
        "training.optimizer": {
            "groups": [
                {"match": "backbones.wrist.*", "lr_scale": 0.1},
                {"match": "*.layers.*", "lr_scale": 0.5},
            ]
        },
    }
    before = resolved(tiny, **changes)
    names = [name for name, _ in Builder.from_recipe(before).build("meta").named_parameters()]
    after = blind(before, names)
    assert list(after["policy"]["backbones"]) == ["proprio", "second"]
    assert after["policy"]["head"]["reads"] == ["second", "proprio.tokens"]
    assert after["policy"]["head"]["in_dim"] is None
    assert after["policy"]["freeze"] == ["backbones.second.*"]
    assert [group["match"] for group in after["training"]["optimizer"]["groups"]] == ["*.layers.*"]
    Builder.from_recipe(after).check()
    unnamed = blind(before)
    assert unnamed["policy"]["freeze"] == ["backbones.*.model.*", "backbones.second.*"]


def test_transforms_of_named_images_go_and_of_states_stay(tiny: dict[str, Any]) -> None:
    image = {"type": "resize", "size": 32, "keys": ["observation.images.corner2"]}
    state = {"type": "normalize", "keys": ["observation.state", "action"]}
    after = blind(resolved(tiny, transforms=[image, {"type": "normalize_image"}, state]))
    assert [raw["keys"] for raw in after["transforms"]] == [["observation.state", "action"]]


def test_necks_lose_what_they_read_of_cameras_and_go_when_nothing_is_left(tiny: dict[str, Any]) -> None:
    changes: dict[str, Any] = {
        "policy.necks": {
            "look": {"type": "attention_pool", "reads": ["vision.tokens"], "heads": 2},
            "again": {"type": "attention_pool", "reads": ["look.tokens"], "heads": 2},
            "both": {"type": "concat", "reads": ["look.pooled", "proprio.pooled"]},
        },
        "policy.head": {"type": "mlp", "reads": ["again.pooled", "both.pooled", "proprio.pooled"]},
        "policy.freeze": ["necks.look.*", "necks.again.norm.*", "backbones.proprio.*"],
    }
    after = blind(resolved(tiny, **changes))
    assert {name: raw["reads"] for name, raw in after["policy"]["necks"].items()} == {
        "both": ["proprio.pooled"]
    }
    assert after["policy"]["head"]["reads"] == ["both.pooled", "proprio.pooled"]
    assert after["policy"]["freeze"] == ["backbones.proprio.*"]
    Builder.from_recipe(after).check()


def test_a_head_forgets_cameras_in_all_its_options(tiny: dict[str, Any]) -> None:
    head = {"type": "act", "width": 16, "heads": 2, "reads": ["vision.pooled", "proprio.pooled"]}
    after = blind(resolved(tiny, **{"policy.head": {**head, "posterior_reads": ["vision.pooled"]}}))
    assert after["policy"]["head"]["reads"] == ["proprio.pooled"]
    assert after["policy"]["head"]["posterior_reads"] == []
    Builder.from_recipe(after).check()


def test_a_backbone_that_reads_more_than_images_stays_and_sees_black(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resolved(tiny)
    monkeypatch.setattr(BACKBONES.get("vit"), "joint", True)
    after = blind(before)
    assert after["policy"] == before["policy"]
    assert after["transforms"] == [{"type": "blank"}, *before["transforms"]]
    Builder.from_recipe(after).check()


@pytest.mark.parametrize("also", [[], ["proprio"]])
def test_what_an_expert_attends_to_stays_and_sees_black_or_the_state(
    tiny: dict[str, Any], also: list[str]
) -> None:
    tiny["policy"]["necks"] = {
        "prefix": {"type": "prefix", "reads": ["vision.tokens", *also], "width": 8, "heads": 2}
    }
    network = {"type": "expert", "width": 8, "hidden": 8, "heads": 2}
    tiny["policy"]["head"] = {
        "type": "flow_matching",
        "reads": ["prefix.key_values", "proprio"],
        "network": network,
    }
    before = resolved(tiny)
    after = blind(before)
    if also:
        assert after["policy"]["necks"]["prefix"]["reads"] == ["proprio"]
        assert after["policy"]["backbones"].keys() == {"proprio"}
    else:
        assert after["policy"] == before["policy"]
        assert after["transforms"] == [{"type": "blank"}, *before["transforms"]]
    Builder.from_recipe(after).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy.backbones": {"vision": VISION}}, "nothing left to read"),
        ({"policy.backbones": {"proprio": PROPRIO}}, "reads no image"),
    ],
)
def test_policies_without_a_control_are_told_apart(
    tiny: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    recipe = resolved(tiny)
    recipe["policy"]["backbones"] = {
        name: raw
        for name, raw in recipe["policy"]["backbones"].items()
        if name in changes["policy.backbones"]
    }
    with pytest.raises(SpecError, match=message):
        blind(recipe)


def test_a_hand_written_policy_has_no_control(tiny: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="`custom` is hand-written"):
        blind({**tiny, "policy": {"type": "custom"}})


def test_a_control_is_trained_once_and_again_when_the_recipe_changes(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    builder = Builder.from_recipe(tiny).override({"training.steps": 1, "data.episodes": [0]})
    policy = builder.train(output=run).policy
    names = [name for name, _ in policy.named_parameters()]
    told: list[str] = []

    def control(saved: SavedPolicy) -> SavedPolicy:
        told.clear()
        planned = BlindControl.plan(saved, names, run / "control", allow_imports=False)
        return SavedPolicy.find(planned.train("cpu", told.append))

    saved = SavedPolicy.find(run)
    first = control(saved)
    assert first.recipe["name"] == "tiny_blind"
    assert told[0].startswith("training the blind control: 1 steps")
    assert needs_of(first).cameras == {}
    assert needs_of(first).keys == {"observation.state", "task"}
    weights = first.directory / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert control(saved).directory == first.directory
    assert told == ["the blind control is already trained"]
    assert weights.stat().st_mtime_ns == written
    changed = {**saved.recipe, "training": {**saved.recipe["training"], "seed": 7}}
    other = SavedPolicy(saved.directory, saved.model_type, {**saved.content, "recipe": changed}, saved.run)
    assert control(other).recipe["training"]["seed"] == 7


def test_a_run_that_is_no_control_is_left_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override({"training.steps": 1, "data.episodes": [0]})
    builder.train(output=tmp_path / "control")
    saved = SavedPolicy.find(tmp_path / "control")
    with pytest.raises(CheckpointError, match="is not a blind control"):
        BlindControl.plan(saved, [], tmp_path / "control", allow_imports=False)
    assert (tmp_path / "control" / "policy" / "config.json").exists()


@pytest.fixture
def home(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved_tokenizer: Any,
    saved_text_encoder: Any,
) -> Path:
    """The directory of a recipe whose dataset and tokenizer lie beside it, with a trained run elsewhere."""
    home = tmp_path / "recipes"
    home.mkdir()
    shutil.copytree(tiny["data"]["path"], home / "demos")
    tokenizer = saved_tokenizer(home)["tokenizer"]
    tiny["data"] = {"path": "demos", "horizon": 4, "episodes": [0]}
    tiny["collator"] = {"type": "language", "tokenizer": Path(tokenizer).name}
    language = saved_text_encoder(home)["pretrained"]
    tiny["policy"]["backbones"]["text"] = {"type": "language", "pretrained": Path(language).name}
    tiny["training"]["steps"] = 1
    (home / "recipe.yaml").write_text(json.dumps(tiny))
    Builder.from_recipe(home / "recipe.yaml").train(output=tmp_path / "run", device="cpu")
    monkeypatch.chdir(tmp_path)
    return home


def test_paths_of_the_recipe_stay_relative_to_it(home: Path, tmp_path: Path) -> None:
    saved = SavedPolicy.find(tmp_path / "run")
    control = BlindControl.plan(saved, [], tmp_path / "control", allow_imports=False)
    trained = SavedPolicy.find(control.train("cpu", lambda text: None))
    assert trained.recipe["data"]["path"] == "demos"
    assert trained.recipe["collator"] == saved.recipe["collator"]
    for name in ("config.json", "recipe.lock.yaml"):
        assert str(tmp_path) not in (trained.directory / name).read_text()
    assert BlindControl.plan(saved, [], tmp_path / "control", allow_imports=False).trained


def test_a_dataset_that_moved_is_taken_from_where_it_was_recorded_or_where_the_recipe_has_it(
    home: Path, tmp_path: Path
) -> None:
    description = tmp_path / "run" / "run.json"
    recorded = json.loads(description.read_text())
    (tmp_path / "else").mkdir()
    (home / "demos").rename(tmp_path / "else" / "demos")
    with pytest.raises(RecipeError, match="there is no dataset directory"):
        BlindControl.plan(SavedPolicy.find(tmp_path / "run"), [], tmp_path / "c", allow_imports=False)
    description.write_text(json.dumps({**recorded, "data": str(tmp_path / "else" / "demos")}))
    saved = SavedPolicy.find(tmp_path / "run")
    control = BlindControl.plan(saved, [], tmp_path / "control", allow_imports=False)
    assert control.builder.recipe.sections.data.path == os.path.join("..", "else", "demos")  # noqa: PTH118
    shutil.copytree(home, tmp_path / "moved")
    shutil.move(tmp_path / "else" / "demos", tmp_path / "moved" / "demos")
    moved = {**recorded, "data": "/gone", "recipe_directory": str(tmp_path / "moved")}
    description.write_text(json.dumps(moved))
    saved = SavedPolicy.find(tmp_path / "run")
    control = BlindControl.plan(saved, [], tmp_path / "control", allow_imports=False)
    assert control.builder.recipe.sections.data.path == "demos"


def test_what_keeps_a_control_from_training_is_said_before_any_rollout(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(home / "demos")
    module = importlib.import_module("policysmith.builder.evaluation.evaluate")
    monkeypatch.setattr(module, "evaluate_closed_loop", lambda *args, **kwargs: pytest.fail("a rollout"))
    with pytest.raises(RecipeError, match="there is no dataset directory"):
        evaluate(tmp_path / "run", env="metaworld/drawer-open-v3", control="blind", device="cpu")


def test_a_damaged_state_of_training_is_said(home: Path, tmp_path: Path) -> None:
    saved = SavedPolicy.find(tmp_path / "run")
    (saved.directory / "training.pt").write_bytes(b"no state")
    with pytest.raises(CheckpointError, match="is damaged"):
        saved.fingerprint()
