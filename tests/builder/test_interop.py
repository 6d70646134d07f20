"""Policies of LeRobot read and written: directories, statistics, and what cannot be converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.interop.lerobot import files, normalization
from policysmith.builder.interop.lerobot.convert import export_policy, import_policy
from policysmith.builder.interop.lerobot.policies import diffusion
from policysmith.components.registry import TRANSFORMS
from policysmith.schemas.console import policysmith
from policysmith.schemas.errors import CheckpointError, WeightsError
from policysmith.schemas.specs import Kind, Spec

CAMERA, STATE = "observation.images.corner2", "observation.state"
ACT: dict[str, Any] = {
    "backbones": {
        "vision": {"type": "timm", "name": "resnet18", "norm": "frozen"},
        "proprio": {"type": "state"},
    },
    "head": {
        "type": "act",
        "reads": ["proprio.pooled", "vision.tokens"],
        "width": 16,
        "heads": 2,
        "feedforward": 16,
        "encoder_layers": 1,
        "posterior_layers": 1,
        "latent": 4,
    },
    "execute": 1,
    "ensemble": 0.01,
}
TRANSFORMED = [{"type": "normalize_image"}, {"type": "normalize"}]


@pytest.fixture(scope="module")
def policy(make_tiny: Callable[[], dict[str, Any]]) -> RecipePolicy:
    built = Builder.from_recipe({**make_tiny(), "policy": ACT, "transforms": TRANSFORMED}).build()
    assert isinstance(built, RecipePolicy)
    return built


@pytest.fixture(scope="module")
def ours(policy: RecipePolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ours") / "policy"
    policy.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def exported(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("theirs") / "act"
    export_policy(ours, output=directory)
    return directory


@pytest.fixture
def theirs(exported: Path, tmp_path: Path) -> Path:
    """A directory of LeRobot that a test may damage."""
    copy = tmp_path / "theirs"
    copy.mkdir()
    for path in exported.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture
def dataset(make_tiny: Callable[[], dict[str, Any]]) -> Path:
    return Path(make_tiny()["data"]["path"])


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_policy_comes_back_as_it_went(
    policy: RecipePolicy, exported: Path, dataset: Path, tmp_path: Path, observation: dict[str, Any]
) -> None:
    output = tmp_path / "policy"
    arguments = ["import-lerobot", str(exported), "--data", str(dataset), "--output", str(output)]
    assert policysmith(arguments) == 0
    loaded = AutoModel.from_pretrained(output)
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    assert all(torch.equal(value, policy.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded.ensemble == 0.01
    torch.testing.assert_close(loaded.select_action(observation), policy.select_action(observation))


def test_training_goes_on_from_an_imported_policy(
    exported: Path, dataset: Path, tmp_path: Path, batch: Callable[..., dict[str, Any]]
) -> None:
    """By the recipe that comes with it; other weights give another loss."""
    imported = import_policy(exported, data=dataset, output=tmp_path / "policy")
    builder = Builder.from_recipe(tmp_path / "policy" / "recipe.lock.yaml").override({"policy.init": "."})
    policy = builder.build()
    for name, value in imported.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value)
    assert policy.config.statistics["action"] == imported.config.statistics["action"]
    losses = []
    for each in (policy, imported):
        torch.manual_seed(0)
        losses.append(each.eval()(batch())["loss"])
    assert torch.equal(losses[0], losses[1])
    new = builder.override({"policy.init": None}).build()
    assert not torch.equal(new(batch())["loss"], losses[0])


def test_what_is_written_is_what_lerobot_reads(policy: RecipePolicy, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["type"] == "act"
    assert config["input_features"] == {
        STATE: {"type": "STATE", "shape": [4]},
        CAMERA: {"type": "VISUAL", "shape": [3, 96, 96]},
    }
    assert config["normalization_mapping"] == {
        "STATE": "MEAN_STD",
        "VISUAL": "MEAN_STD",
        "ACTION": "MEAN_STD",
    }
    assert (config["chunk_size"], config["n_action_steps"]) == (4, 1)
    steps = json.loads((exported / "policy_preprocessor.json").read_text())["steps"]
    held = load_file(exported / steps[-1]["state_file"])
    assert held[f"{CAMERA}.mean"].shape == (3, 1, 1)
    assert held["action.std"].tolist() == pytest.approx(policy.config.statistics["action"]["std"])


def test_the_command_writes_the_same(ours: Path, exported: Path, tmp_path: Path) -> None:
    assert policysmith(["export-lerobot", str(ours), "--output", str(tmp_path / "again")]) == 0
    for path in exported.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(CheckpointError, match="is not empty"):
        export_policy(ours, output=exported)


def test_statistics_inside_the_weights_of_old_policies(theirs: Path, dataset: Path, tmp_path: Path) -> None:
    found = files.read(theirs)
    weights = load_file(theirs / "model.safetensors")
    for key, held in found.statistics.items():
        for part in (
            ("normalize_targets", "unnormalize_outputs") if key == "action" else ("normalize_inputs",)
        ):
            for name, values in held.items():
                weights[f"{part}.buffer_{key.replace('.', '_')}.{name}"] = torch.tensor(values)
    save_file(weights, theirs / "model.safetensors")
    for path in theirs.glob("policy_*"):
        path.unlink()
    old = files.read(theirs)
    assert old.statistics == found.statistics
    assert old.weights.keys() == found.weights.keys()
    assert (
        import_policy(theirs, data=dataset, output=tmp_path / "policy").config.statistics["action"]["mean"]
        == (found.statistics["action"]["mean"])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(type="tdmpc"), "type `tdmpc` cannot be converted, only act"),
        (lambda config: config.pop("type"), "no `type`; name the directory"),
        (lambda config: config.update(n_encoder_layers=2), r"missing: model\.encoder\.layers\.1"),
        (
            lambda config: config["input_features"][STATE].update(shape=[5]),
            r"\(5,\), but the dataset has \(4,\)",
        ),
        (
            lambda config: config.update(dim_feedforward=8),
            r"hidden\.bias has shape \(16,\) instead of \(8,\)",
        ),
        (
            lambda config: config["input_features"].update(
                {"observation.depth": {"type": "STATE", "shape": [1]}}
            ),
            "reads `observation.depth`",
        ),
        (
            lambda config: config["normalization_mapping"].update(STATE="QUANTILE10"),
            "normalized by QUANTILE10, which has no counterpart",
        ),
        (
            lambda config: config["normalization_mapping"].update(VISUAL="QUANTILES"),
            "lacks the `q01` of `observation.images.corner2`",
        ),
    ],
)
def test_what_cannot_be_converted_is_said(
    change: Callable[[dict[str, Any]], Any], message: str, theirs: Path, dataset: Path, tmp_path: Path
) -> None:
    edit(theirs / "config.json", change)
    with pytest.raises((CheckpointError, WeightsError), match=message):
        import_policy(theirs, data=dataset, output=tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_a_step_of_the_preprocessor_without_counterpart(theirs: Path, dataset: Path, tmp_path: Path) -> None:
    def rename(value: dict[str, Any]) -> None:
        value["steps"][0]["config"]["rename_map"] = {"a": "b"}

    edit(theirs / "policy_preprocessor.json", rename)
    with pytest.raises(WeightsError, match="`rename_observations_processor` has no counterpart"):
        import_policy(theirs, data=dataset, output=tmp_path / "policy")


def test_files_that_are_missing_or_damaged(theirs: Path, dataset: Path, tmp_path: Path) -> None:
    (theirs / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged"):
        import_policy(theirs, data=dataset, output=tmp_path / "policy")
    (theirs / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        import_policy(theirs, data=dataset, output=tmp_path / "policy")


def test_a_policy_without_counterpart_is_not_exported(tiny: dict[str, Any], tmp_path: Path) -> None:
    Builder.from_recipe(tiny).build().save_pretrained(tmp_path / "policy")
    with pytest.raises(WeightsError, match="a head like `mlp`; only act"):
        export_policy(tmp_path / "policy", output=tmp_path / "theirs")


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES"])
def test_values_are_normalised_as_by_lerobot(mode: str) -> None:
    low, high = [-1.0, 0.5, 2.0], [3.0, 0.75, 2.0]
    names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}[mode]
    features = {STATE: {"type": "STATE", "shape": [3]}, "action": {"type": "ACTION", "shape": [3]}}
    config = {
        "input_features": {STATE: features[STATE]},
        "output_features": {"action": features["action"]},
        "normalization_mapping": {"STATE": mode, "ACTION": "IDENTITY"},
    }
    (raw,), statistics = normalization.transforms(config, {STATE: dict(zip(names, (low, high), strict=True))})
    specs = {STATE: Spec(Kind.STATE, ("B", 1, 3)), "action": Spec(Kind.ACTION, ("B", 4, 3))}
    part: Any = TRANSFORMS.get("normalize")
    transform = part(part.Config.model_validate(raw), specs, {"statistics": statistics})
    first, second = torch.tensor(low), torch.tensor(high)
    values = first + torch.tensor([[[0.3, -0.2, 0.0]]])
    expected = 2.0 * (values - first) / (second - first).clamp_min(1e-8) - 1.0
    if mode == "MEAN_STD":
        expected = (values - first) / (second + 1e-8)
    batch = {STATE: values, "action": torch.ones(1, 4, 3)}
    torch.testing.assert_close(transform(batch)[STATE], expected)
    assert torch.equal(transform(batch)["action"], batch["action"])


def test_cameras_with_the_same_statistics_share_a_transform() -> None:
    cameras = [f"observation.images.{name}" for name in "abc"]
    config = {
        "input_features": {camera: {"type": "VISUAL", "shape": [3, 8, 8]} for camera in cameras},
        "output_features": {},
        "normalization_mapping": {"VISUAL": "MEAN_STD"},
    }
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    held = dict(zip(cameras, (imagenet, other, imagenet), strict=True))
    found, _ = normalization.transforms(config, held)
    assert [raw["keys"] for raw in found] == [[cameras[0], cameras[2]], [cameras[1]]]
    assert found[0]["stats"] == "imagenet"
    features = config["input_features"]
    part: Any = TRANSFORMS.get("normalize_image")
    resolved = [part.Config.model_validate(raw).model_dump(mode="json") for raw in found]
    mapping, back = normalization.processor({"recipe": {"transforms": resolved}}, features)
    assert mapping == {"VISUAL": "MEAN_STD"}
    for camera in cameras:
        for name in ("mean", "std"):
            assert back[camera][name] == pytest.approx(held[camera][name])


def test_a_crop_is_done_by_the_encoder_of_diffusion_policy_and_by_nothing_of_act() -> None:
    features = {CAMERA: {"type": "VISUAL", "shape": [3, 96, 96]}}
    resolved = []
    for raw in ({"type": "crop", "size": 84}, {"type": "normalize_image"}):
        part: Any = TRANSFORMS.get(str(raw["type"]))
        resolved.append(part.Config.model_validate(raw).model_dump(mode="json"))
    content = {"recipe": {"transforms": resolved}, "statistics": {}}
    with pytest.raises(WeightsError, match="no transform like `crop`"):
        normalization.processor(content, features)
    options, steps, left = diffusion.processor(content)
    assert (options, steps) == ({}, [])
    assert normalization.processor(left, features)[0] == {"VISUAL": "MEAN_STD"}
    assert content["recipe"]["transforms"] == resolved


def test_modes_of_single_dimensions_are_not_exported() -> None:
    gripper = {"type": "normalize", "dims": [{"key": "action", "dims": [-1], "mode": "binary"}]}
    part: Any = TRANSFORMS.get("normalize")
    resolved = [part.Config.model_validate(gripper).model_dump(mode="json")]
    with pytest.raises(WeightsError, match="normalizes whole keys"):
        normalization.processor(
            {"recipe": {"transforms": resolved}}, {"action": {"type": "ACTION", "shape": [4]}}
        )
