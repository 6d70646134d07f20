"""Policies written as checkpoints of their own, with their adapters merged or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.exporting.export import export
from policysmith.builder.exporting.merging import merge_adapters
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.console import policysmith
from policysmith.schemas.errors import CheckpointError, WeightsError

Batches = Callable[..., dict[str, Any]]


@pytest.fixture
def adapted(tiny: dict[str, Any], tmp_path: Path) -> Any:
    """A policy with adapters in two backbones, moved as training does."""
    backbones = tiny["policy"]["backbones"]
    backbones["vision"]["lora"] = {"rank": 4, "alpha": 8.0}
    backbones["proprio"]["lora"] = {"rank": 2}
    tiny["policy"]["freeze"] = ["*.lora_A.*", "backbones.vision.model.embeddings.*"]
    tiny["training"]["optimizer"] = {
        "groups": [{"match": "*.lora_B.*", "lr_scale": 2.0}, {"match": "head.*", "lr_scale": 0.5}]
    }
    policy = Builder.from_recipe(tiny).build()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    policy.save_pretrained(tmp_path / "adapted")
    return policy


def test_merged_it_acts_the_same_and_knows_no_adapters(adapted: Any, tmp_path: Path, batch: Batches) -> None:
    expected = adapted.inference(batch())
    assert (
        policysmith(["export", str(tmp_path / "adapted"), "--merge", "--output", str(tmp_path / "whole")])
        == 0
    )
    whole = AutoModel.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(whole.inference(batch()), expected, atol=1e-6, rtol=0.0)
    assert not any("lora" in name or "base_layer" in name for name in whole.state_dict())
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    backbones = config["recipe"]["policy"]["backbones"]
    assert backbones["vision"]["lora"] is backbones["proprio"]["lora"] is None
    assert config["provenance"]["merged"] == ["proprio", "vision"]
    assert config["provenance"]["recipe_sha256"] == adapted.content["provenance"]["recipe_sha256"]
    assert not (tmp_path / "whole" / "recipe.yaml").exists()
    whole.train()
    trains = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert "backbones.proprio.layers.0.weight" in trains
    assert not any(".embeddings." in name for name in trains)


def test_the_recipe_of_a_merged_policy_is_good(adapted: Any, tmp_path: Path) -> None:
    export(tmp_path / "adapted", tmp_path / "whole", merge=True)
    builder = Builder.from_recipe(tmp_path / "whole" / "recipe.lock.yaml").check()
    assert builder.recipe.resolved()["policy"]["freeze"] == ["backbones.vision.model.embeddings.*"]
    assert [g.match for g in builder.recipe.sections.training.optimizer.groups] == ["head.*"]
    assert (
        builder.build().state_dict().keys()
        == AutoModel.from_pretrained(tmp_path / "whole").state_dict().keys()
    )


def test_merged_weights_are_those_of_peft(adapted: Any) -> None:
    """W + alpha / rank B A, in float64."""
    held = {key: value.double() for key, value in adapted.state_dict().items()}
    merge_adapters(adapted)
    merged = 0
    for key, value in adapted.state_dict().items():
        stem, _, last = key.rpartition(".")
        if f"{stem}.lora_A.default.weight" not in held:
            assert torch.equal(value, held[key].float())
            continue
        expected = held[f"{stem}.base_layer.{last}"]
        if last == "weight":
            scale = 8.0 / 4 if stem.startswith("backbones.vision.") else 16.0 / 2
            up, down = held[f"{stem}.lora_B.default.weight"], held[f"{stem}.lora_A.default.weight"]
            expected, merged = expected + scale * up @ down, merged + 1
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    assert merged == 6 + 2


def test_without_merging_it_is_a_copy(adapted: Any, tmp_path: Path, batch: Batches) -> None:
    export(tmp_path / "adapted", tmp_path / "copy")
    copied = AutoModel.from_pretrained(tmp_path / "copy")
    assert torch.equal(copied.inference(batch()), adapted.inference(batch()))
    assert (tmp_path / "copy" / "config.json").read_text() == (
        tmp_path / "adapted" / "config.json"
    ).read_text()


def test_a_run_is_exported_by_its_last_policy(tiny: dict[str, Any], tmp_path: Path, batch: Batches) -> None:
    tiny["policy"]["backbones"]["vision"]["lora"] = {"rank": 4}
    tiny["training"] |= {"steps": 2, "save_every": 1}
    result = Builder.from_recipe(tiny).train(output=tmp_path / "run", device="cpu")
    export(tmp_path / "run", tmp_path / "whole", merge=True)
    trained, whole = (AutoModel.from_pretrained(path) for path in (result.checkpoint, tmp_path / "whole"))
    torch.testing.assert_close(whole.inference(batch()), trained.inference(batch()), atol=1e-6, rtol=0.0)
    assert trained.config.provenance["dataset"] == whole.config.provenance["dataset"]


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_policy_without_adapters_says_so(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Builder.from_recipe(tiny).build().save_pretrained(tmp_path / "plain")
    words = ["export", str(tmp_path / "plain"), "--merge", "--output", str(tmp_path / "whole")]
    assert policysmith(words) == 4
    assert "has no low-rank adapters to merge; leave `--merge` out" in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


def test_nothing_is_overwritten(adapted: Any, tmp_path: Path) -> None:
    before = (tmp_path / "adapted" / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="is not empty"):
        export(tmp_path / "adapted", tmp_path / "adapted", merge=True)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        export(tmp_path / "adapted", tmp_path / "file")
    assert (tmp_path / "adapted" / "config.json").read_bytes() == before
    with pytest.raises(CheckpointError, match="is not a directory"):
        export(tmp_path / "nothing", tmp_path / "whole")


def test_adapters_that_are_not_finite_leave_nothing(adapted: Any, tmp_path: Path) -> None:
    adapted.backbones["proprio"].layers[0].lora_B["default"].weight.data.fill_(float("inf"))
    adapted.save_pretrained(tmp_path / "broken")
    with pytest.raises(WeightsError, match=r"weights that are not finite: .*lora_B"):
        export(tmp_path / "broken", tmp_path / "whole", merge=True)
    assert not (tmp_path / "whole").exists()


def test_a_hand_written_policy_merges_its_own(
    adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedPolicy, "handwritten", True)
    monkeypatch.setattr(SavedPolicy, "run_imports", lambda self, allowed: None)
    with pytest.raises(CheckpointError, match="is hand-written"):
        export(tmp_path / "adapted", tmp_path / "whole", merge=True)
    with pytest.raises(CheckpointError, match="must be exported by its own code"):
        export(tmp_path / "adapted", tmp_path / "file", format="torch-export")
