"""`Builder`: from a path, a mapping or text, changed or not, to a policy, and what it says when it cannot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel

from policysmith.builder import Builder, RecipePolicy, provenance
from policysmith.builder.recipe.imports import run_import
from policysmith.builder.saved_policy import choose_device
from policysmith.schemas.errors import CheckpointError, PolicysmithError, RecipeError, TrainingError

Refused = Callable[[Callable[[], Any]], Any]


def test_path_mapping_and_text_mean_the_same(tiny: dict[str, Any], to_yaml: Any) -> None:
    path = to_yaml(tiny)
    resolved = [
        Builder.from_recipe(source).recipe.resolved() for source in (path, str(path), tiny, path.read_text())
    ]
    assert all(one == resolved[0] for one in resolved)


def test_an_override_gives_another_builder(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny)
    nested = builder.override({"training": {"steps": 7}})
    dotted = nested.override({"training.batch_size": 2, "policy.head.hidden": [5]})
    assert builder.recipe.sections.training.steps == 4
    assert (dotted.recipe.sections.training.steps, dotted.recipe.sections.training.batch_size) == (7, 2)
    assert tiny["training"]["steps"] == 4
    assert dotted.build().config.recipe["policy"]["head"]["hidden"] == [5]


def test_check_gives_the_builder_and_a_summary(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny)
    assert builder.check() is builder
    summary, policy = builder.summary, builder.build()
    assert summary is not None
    assert summary.parameters == summary.trainable == sum(p.numel() for p in policy.parameters())
    assert sum(summary.parts.values()) == summary.parameters
    assert summary.parts.keys() == {"backbones.vision", "backbones.proprio", "head"}
    assert summary.training_bytes == 16 * summary.parameters
    assert summary.action.dims == ("B", 4, 4)


def test_the_frozen_cost_no_gradient(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny).override({"policy.freeze": ["backbones.vision.*"]})
    summary = builder.summary
    assert summary is not None
    assert summary.frozen == {"backbones.vision.*": summary.parts["backbones.vision"]}
    assert summary.trainable == summary.parameters - summary.parts["backbones.vision"]
    assert summary.training_bytes == 4 * summary.parameters + 12 * summary.trainable


def test_on_meta_nothing_is_allocated(tiny: dict[str, Any]) -> None:
    policy = Builder.from_recipe(tiny).override({"policy.head.hidden": [4_000_000, 4_000_000]}).build("meta")
    assert {p.device.type for p in policy.parameters()} == {"meta"}


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cpu:0", "toaster"])
def test_training_ignores_no_device(tiny: dict[str, Any], tmp_path: Path, device: str) -> None:
    with pytest.raises(TrainingError, match=device):
        Builder.from_recipe(tiny).train(output=tmp_path / "run", device=device)
    if device in ("mps", "xpu", "toaster"):
        with pytest.raises(TrainingError, match=device):
            choose_device(device)


def test_a_time_limit_may_be_longer_than_any_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override({"training.steps": 1, "training.timeout_minutes": 1e308})
    assert builder.train(output=tmp_path / "run", device="cpu").steps == 1


def test_a_file_under_imports_that_exits_is_reported(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    builder = Builder.from_recipe(tiny | {"imports": [str(tmp_path / "leaves.py")]}, allow_imports=True)
    with pytest.raises(RecipeError, match=r"importing .* failed: SystemExit"):
        builder.check()
    with pytest.raises(PolicysmithError, match="SystemExit"):
        run_import(str(tmp_path / "leaves.py"))


def test_a_build_is_decided_by_the_seed(tiny: dict[str, Any]) -> None:
    one, same = Builder.from_recipe(tiny).build(), Builder.from_recipe(tiny).build()
    other = Builder.from_recipe(tiny).override({"training.seed": 1}).build()
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    assert not one.training


def test_errors_carry_diagnostics(tiny: dict[str, Any], refused: Refused) -> None:
    tiny["policy"]["head"]["hiden"] = [1]
    tiny["training"]["steps"] = 0
    for action in ("check", "build", "train"):
        found = refused(getattr(Builder.from_recipe(tiny), action))
        assert {finding.code for finding in found} == {"E003 unknown-key", "E007 invalid-value"}


def test_nothing_runs_when_the_recipe_is_wrong(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        Builder.from_recipe(tiny).override({"policy.head.in_dim": 1}).train(output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_not_there(tiny: dict[str, Any], to_yaml: Any, refused: Refused) -> None:
    tiny["data"]["path"] = "nowhere"
    (finding,) = refused(Builder.from_recipe(to_yaml(tiny)).check)
    assert (finding.code, finding.span.text) == ("E023 bad-dataset", '"nowhere"')


def test_train_gives_the_policy_that_it_saved(
    tiny: dict[str, Any], tmp_path: Path, batch: Any, to_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["data"] |= {"path": os.path.relpath(tiny["data"]["path"], tmp_path), "validation": 0.25}
    monkeypatch.chdir(tmp_path)
    builder = Builder.from_recipe(to_yaml(tiny))
    result = builder.train(device="cpu")
    assert isinstance(result.policy, RecipePolicy)
    assert result.checkpoint == Path("runs/tiny/checkpoints/step-00000004")
    loaded = AutoModel.from_pretrained("runs/tiny/policy")
    assert torch.equal(loaded.inference(batch()), result.policy.inference(batch()))
    assert str(tmp_path) not in Path("runs/tiny/policy/config.json").read_text()
    assert json.loads(Path("runs/tiny/run.json").read_text())["recipe_sha256"] == builder.recipe.sha256
    with pytest.raises(CheckpointError, match="already holds a run"):
        builder.train(device="cpu")


def test_a_sweep_may_keep_the_recipes_name(tiny: dict[str, Any]) -> None:
    builder = Builder.from_recipe(tiny)
    for width in (8, 16, 8):
        policy = builder.override({"policy.head.hidden": [width]}).check().build()
        assert policy.config.recipe["policy"]["head"]["hidden"] == [width]


def test_the_data_of_training_are_noted(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny)
    result = builder.train(output=tmp_path / "run", device="cpu")
    training, _ = builder.datasets()
    held = json.loads((result.checkpoint / "config.json").read_text())["provenance"]
    assert held["dataset"] == training.fingerprint  # type: ignore[attr-defined]


def test_the_versions_of_plugins_that_own_parts_are_noted(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str, version: str) -> Any:
        return SimpleNamespace(name=name, version=version)

    def points(group: str) -> list[Any]:
        found = {
            "policysmith.heads": [
                SimpleNamespace(name="mlp", dist=distribution("someones-heads", "1.5")),
                SimpleNamespace(name="unused", dist=distribution("others-heads", "2.0")),
            ],
            "policysmith.backbones": [SimpleNamespace(name="vit", dist=None)],
            "policysmith.transforms": [SimpleNamespace(name="resize", dist=distribution("sizes", "0.1"))],
        }
        return found.get(group, [])

    loaded = Builder.from_recipe(tiny).recipe
    monkeypatch.setattr(provenance, "entry_points", points)
    versions = provenance.policy_provenance(loaded)["versions"]
    assert torch.__version__.startswith(versions["torch"])
    assert versions["someones-heads"] == "1.5"
    assert versions["sizes"] == "0.1"
    assert "others-heads" not in versions


def test_statistics_are_those_of_the_training_episodes(tiny: dict[str, Any]) -> None:
    whole = Builder.from_recipe(tiny)
    split = whole.override({"data.validation": 0.25})
    assert split.sources[0].validation
    split_statistics = split.sources[0].statistics
    assert split_statistics["action"]["count"] < whole.sources[0].statistics["action"]["count"]
    assert split.build().config.statistics == split_statistics
