"""`policy.init`: training that begins where a trained policy ended, and what is said of it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.schemas.console import policysmith

Refused = Callable[[Callable[[], Any]], Any]
OTHERS = [4, 5, 6]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Path:
    """The run of a policy that was trained for a moment."""
    run = tmp_path_factory.mktemp("trained") / "run"
    Builder.from_recipe(make_tiny()).train(output=run)
    return run


@pytest.fixture
def tuned(tiny: dict[str, Any], trained: Path) -> dict[str, Any]:
    """A recipe that goes on from it on other episodes."""
    tiny["name"] = "tuned"
    tiny["policy"]["init"] = str(trained)
    tiny["data"]["episodes"] = OTHERS
    tiny["training"]["steps"] = 1
    return tiny


def first_loss(recipe: dict[str, Any], output: Path) -> float:
    Builder.from_recipe(recipe).train(output=output)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return float(next(line["loss"] for line in lines if line.get("step") == 1))


def test_training_goes_on_from_the_loaded_policy(
    tuned: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    before = AutoModel.from_pretrained(trained / "policy")
    builder = Builder.from_recipe(tuned)
    policy = builder.build()
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in policy.state_dict().items())
    assert policy.config.statistics == before.config.statistics
    assert builder.notes[0].endswith("30 of 30 tensors taken, 16,496 of 16,496 values")
    fives = shutil.copytree(trained / "policy", tmp_path / "fives", symlinks=False)
    (fives / "manifest.json").unlink()
    weights = load_file(fives / "model.safetensors")
    save_file(
        {name: torch.full_like(value, 5.0) for name, value in weights.items()},
        fives / "model.safetensors",
        metadata={"format": "pt"},
    )
    other = copy.deepcopy(tuned)
    other["policy"]["init"] = str(fives)
    loss = first_loss(tuned, tmp_path / "run")
    assert first_loss(other, tmp_path / "other") != pytest.approx(loss, rel=0.1)
    described = json.loads((tmp_path / "run" / "run.json").read_text())["init"]
    assert described["from"] == str(trained)
    assert described["kept"] == ["observation.state", "action"]
    saved = json.loads((tmp_path / "run" / "policy" / "config.json").read_text())
    assert saved["provenance"]["init"] == described
    notes = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert "starts from" in notes[0]


def test_the_first_loss_is_that_of_the_loaded_policy(
    tuned: dict[str, Any], trained: Path, batch: Callable[..., dict[str, Any]]
) -> None:
    tuned["transforms"] = tuned["transforms"][1:]
    before = AutoModel.from_pretrained(trained / "policy")
    policy = Builder.from_recipe(tuned).build()
    samples = batch()
    assert torch.equal(policy(samples)["loss"], before(samples)["loss"])


def test_statistics_are_recomputed_where_that_is_said(tuned: dict[str, Any], trained: Path) -> None:
    tuned["policy"]["init"] = {"from": str(trained), "statistics": "recompute"}
    builder = Builder.from_recipe(copy.deepcopy(tuned))
    del tuned["policy"]["init"]
    assert builder.build().config.statistics == Builder.from_recipe(tuned).build().config.statistics
    assert any("statistics of the data: observation.state, action" in line for line in builder.notes)


def test_what_fits_is_taken_and_the_rest_is_told(
    tuned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    backbones = tuned["policy"]["backbones"]
    backbones["view"] = {**backbones.pop("vision"), "width": 8}
    backbones["proprio"]["hidden"] = [4]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tuned))
    assert policysmith(["check", str(path)]) == 0
    written = capsys.readouterr()
    said = written.out
    assert "new, without a counterpart: backbones.view.*" in said
    assert "backbones.proprio.layers" in said
    assert "(8, 4) -> (4, 4)" in said
    assert "not taken: backbones.vision.*" in said
    assert "W007 base-differs]: `policy.backbones.proprio.hidden` was [8] and is [4]" in written.err
    before = AutoModel.from_pretrained(trained / "policy").state_dict()
    now = Builder.from_recipe(path).build().state_dict()
    same = [n for n in now if n in before and now[n].shape == before[n].shape]
    assert f"{len(same)} of {len(now)} tensors taken" in said
    assert all(torch.equal(now[name], before[name]) for name in same)


def test_other_names_of_dimensions_have_statistics_of_their_own_and_another_order_is_refused(
    tuned: dict[str, Any], trained: Path, tmp_path: Path, refused: Refused
) -> None:
    held = shutil.copytree(trained / "policy", tmp_path / "held", symlinks=False)
    (held / "manifest.json").unlink()
    tuned["policy"]["init"] = str(held)

    def rename(names: list[str]) -> Builder:
        config = json.loads((held / "config.json").read_text())
        config["signals"] = {"fps": 10, "names": {"observation.state": names}}
        (held / "config.json").write_text(json.dumps(config))
        return Builder.from_recipe(tuned)

    notes = rename(["a", "b", "c", "d"]).notes
    assert "  statistics kept: action" in notes
    assert any("(hand_x, hand_y, hand_z, gripper_opening) in the data and (a, b, c, d)" in n for n in notes)
    assert any("trained at 10 frames per second, the data has 80" in n for n in notes)
    (finding,) = refused(rename(["gripper_opening", "hand_z", "hand_y", "hand_x"]).check)
    assert "in the order (gripper_opening, hand_z, hand_y, hand_x)" in finding.message
    assert "in the order (hand_x, hand_y, hand_z, gripper_opening)" in finding.message


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("nowhere", "no policy exists at"),
        ("~nobody-here/policy", "no policy exists at"),
        ("a" * 5000, "no policy exists at"),
        ("./nowhere/policy", "no policy exists at"),
        ("somebody/policy", "no such policy in the cache of the hub"),
        (".", "holds neither a run"),
    ],
)
@pytest.mark.parametrize("spelled", [str, lambda given: {"from": given}])
def test_what_is_no_policy_is_refused_at_its_place(
    given: str,
    complaint: str,
    spelled: Callable[[str], Any],
    tuned: dict[str, Any],
    to_yaml: Callable[[dict[str, Any]], Path],
    refused: Refused,
) -> None:
    tuned["policy"]["init"] = spelled(given)
    (finding,) = refused(Builder.from_recipe(to_yaml(tuned)).check)
    assert complaint in finding.message
    assert finding.code == "E024 bad-weights"
    assert finding.span.text == json.dumps(given)


def test_a_policy_of_lerobot_is_told_how_to_come_over(
    tuned: dict[str, Any], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "config.json").write_text('{"type": "act", "input_features": {}}')
    tuned["policy"]["init"] = str(tmp_path)
    (finding,) = refused(Builder.from_recipe(tuned).check)
    assert "policysmith import-lerobot" in finding.message


def test_a_policy_of_which_nothing_fits_is_refused(
    tuned: dict[str, Any], to_yaml: Callable[[dict[str, Any]], Path], refused: Refused
) -> None:
    tuned["policy"]["backbones"] = {"other": {"type": "mlp", "hidden": [8], "width": 8}}
    tuned["policy"]["head"] = {"type": "mlp", "hidden": [11]}
    tuned["data"]["horizon"] = 5
    (finding,) = refused(Builder.from_recipe(to_yaml(tuned)).check)
    assert "no weight of" in finding.message
    assert "backbones.vision.*" in finding.message


def test_weights_that_are_not_finite_are_no_start(
    tuned: dict[str, Any], trained: Path, tmp_path: Path, refused: Refused
) -> None:
    broken = shutil.copytree(trained / "policy", tmp_path / "broken", symlinks=False)
    (broken / "manifest.json").unlink()
    weights = load_file(broken / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    tuned["policy"]["init"] = str(broken)
    (finding,) = refused(Builder.from_recipe(tuned).build)
    assert "not finite" in finding.message


def test_a_resumed_run_does_not_read_what_it_started_from(
    tuned: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    held = shutil.copytree(trained / "policy", tmp_path / "held", symlinks=False)
    tuned["policy"]["init"] = str(held)
    tuned["training"] |= {"steps": 4, "save_every": 2, "keep": 4}
    whole = Builder.from_recipe(tuned).train(output=tmp_path / "whole").policy
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000004")
    shutil.rmtree(held)
    resumed = Builder.from_recipe(tuned).train(output=tmp_path / "cut", resume=True).policy
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert resumed.config.statistics == whole.config.statistics
    assert resumed.config.provenance["init"] == whole.config.provenance["init"]


def test_adapters_come_beside_the_weights_of_a_policy_without_them(
    tuned: dict[str, Any], trained: Path, tmp_path: Path, refused: Refused
) -> None:
    plain = copy.deepcopy(tuned)
    tuned["policy"]["backbones"]["vision"]["lora"] = {"rank": 2}
    builder = Builder.from_recipe(tuned)
    before = AutoModel.from_pretrained(trained / "policy").state_dict()
    now = builder.build().state_dict()
    assert all(torch.equal(now[n], before[n.replace(".base_layer.", ".")]) for n in now if ".lora_" not in n)
    assert not [name for name in builder.notes if "not taken" in name]
    builder.train(output=tmp_path / "adapted")
    plain["policy"]["init"] = str(tmp_path / "adapted")
    (finding,) = refused(Builder.from_recipe(plain).check)
    assert "policysmith export" in finding.message


def test_random_weights_that_are_frozen_are_warned_of(
    tiny: dict[str, Any], tuned: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    plain = {**copy.deepcopy(tiny), "policy": {**tiny["policy"], "init": None}}
    plain["silence"] = ["W005"]
    assert Builder.from_recipe(plain).notes == ()
    plain["policy"]["freeze"] = ["backbones.vision.*"]
    builder = Builder.from_recipe(plain)
    (warning,) = builder.notes
    assert "weights of `backbones.vision` are random and frozen" in warning
    builder.override({"training.steps": 1}).train(output=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0]) == {"note": warning}
    plain["policy"]["init"] = str(trained)
    assert not [line for line in Builder.from_recipe(plain).notes if "frozen" in line]
