"""A saved policy is the policy: same actions to the bit, same buffers, whatever it is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.components.registry import BACKBONES, COLLATORS, HEADS
from policysmith.schemas.specs import Kind
from policysmith.schemas.yaml.document import Document, from_mapping

# timm models with buffers that no checkpoint holds: relative positions, rotary embeddings.
TRAPS = {"swin_tiny_patch4_window7_224": 56, "eva02_tiny_patch14_224": 28, "vit_small_patch16_dinov3": 32}


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN, so that nothing is right by luck."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def with_backbone(recipe: dict[str, Any], name: str, head: str, directory: Path) -> dict[str, Any]:
    """The recipe with a registered backbone beside the robot's state, or with a trap of timm."""
    if name in TRAPS:
        recipe["transforms"][1]["size"] = TRAPS[name]
        part: dict[str, Any] = {"type": "timm", "name": name}
    else:
        part = BACKBONES.get(name).example().model_dump(mode="json")
        if name == "vlm":
            recipe["transforms"][1]["size"] = 32
        if name == "vlm" or BACKBONES.get(name).kind is Kind.TOKEN_IDS:
            recipe["collator"] = COLLATORS.get("language").example().model_dump(mode="json")
    recipe["policy"]["backbones"]["vision"] = part
    recipe["policy"]["head"] = HEADS.get(head).example().model_dump(mode="json")
    if head == "oft":
        del recipe["policy"]["backbones"]["proprio"]
        recipe["policy"]["head"]["reads"] = ["vision.tokens"]
    return recipe


def actions(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
    result: torch.Tensor = policy.inference(batch, generator=torch.Generator().manual_seed(3))
    return result


def assert_same(one: RecipePolicy, other: RecipePolicy, batch: dict[str, Any]) -> None:
    for kind in ("named_parameters", "named_buffers"):
        first, second = dict(getattr(one, kind)()), dict(getattr(other, kind)())
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value.dtype == second[name].dtype, name
            assert torch.equal(value, second[name]), name
    expected = actions(one, batch)
    assert expected.isfinite().all()
    assert torch.equal(expected, actions(other, batch))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *((name, "mlp") for name in (*BACKBONES.names(), *TRAPS)),
        *(("vit", head) for head in HEADS.names() if head != "mlp"),
    ],
)
def test_a_reloaded_policy_acts_as_before(
    name: str, head: str, tiny: dict[str, Any], tmp_path: Path, batch: Callable[..., dict[str, Any]]
) -> None:
    policy = Builder.from_recipe(with_backbone(tiny, name, head, tmp_path)).build()
    _move_away_from_initial_values(policy)
    policy.save_pretrained(tmp_path / "saved")
    assert_same(policy, AutoModel.from_pretrained(tmp_path / "saved"), batch())


def _move_away_from_initial_values(policy: torch.nn.Module) -> None:
    """As training does, so that building anew cannot pass for loading; heads that start at zero act."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
        for name, buffer in policy.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.1


@pytest.mark.parametrize("name", ["vit", "timm", *TRAPS])
def test_bf16_stays_bf16(
    name: str, tiny: dict[str, Any], tmp_path: Path, batch: Callable[..., dict[str, Any]]
) -> None:
    policy = Builder.from_recipe(with_backbone(tiny, name, "mlp", tmp_path)).build().to(torch.bfloat16)
    policy.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert loaded.dtype is torch.bfloat16
    assert_same(policy, loaded, batch())
    assert actions(loaded, batch()).dtype is torch.float32


def test_statistics_survive_a_cast_to_bf16(
    tiny: dict[str, Any], tmp_path: Path, batch: Callable[..., dict[str, Any]]
) -> None:
    builder = Builder.from_recipe(tiny)
    policy = builder.build().to(torch.bfloat16)
    policy.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    state = batch()["observation.state"]
    held = loaded.config.statistics["observation.state"]
    mean, std = torch.tensor(held["mean"]), torch.tensor(held["std"])
    varies = std > 0  # in these four demonstrations the gripper stays open
    given = loaded.transform(batch())["observation.state"]
    assert torch.equal(given[..., varies], ((state - mean) / std)[..., varies])
    assert varies.sum() == 3
    assert held == builder.sources[0].statistics["observation.state"]


def test_the_order_of_backbones_and_cameras_is_no_matter_of_spelling(
    tiny: dict[str, Any], tmp_path: Path, batch: Callable[..., dict[str, Any]]
) -> None:
    """`config.json` sorts its keys; what a head concatenates must not follow."""
    part = {"type": "mlp", "hidden": [4], "width": 4}
    tiny["policy"]["backbones"] = {"z": part, "m": {**part, "width": 6}, "a": {**part, "width": 8}}
    policy = Builder.from_recipe(tiny).build()
    policy.save_pretrained(tmp_path)
    assert_same(policy, AutoModel.from_pretrained(tmp_path), batch())


def test_explicit_reads_keep_their_order(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["policy"]["head"]["reads"] = ["vision.tokens", "proprio"]
    policy = Builder.from_recipe(tiny).build()
    policy.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert list(loaded._wiring.features) == ["vision.tokens", "proprio.pooled"]


def test_config_json_describes_the_policy(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["path"] = "datasets/drawer_open"
    recipes = Path(__file__).parents[3] / "recipes"
    document = Document(from_mapping(tiny).root, recipes)
    builder = Builder.from_recipe(document)  # type: ignore[arg-type]
    builder.build().save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "config.json").read_text()
    config = json.loads(text)
    assert config["model_type"] == "policysmith_policy"
    assert config["recipe"] == builder.recipe.resolved()
    assert config["recipe"]["policy"]["backbones"]["vision"]["mlp_ratio"] is None  # defaults are spelled out
    assert config["specs"]["action"]["dims"] == ["B", 4, 4]
    assert len(config["statistics"]["action"]["mean"]) == 4
    assert math.isfinite(config["statistics"]["action"]["std"][0])
    assert config["provenance"]["recipe_sha256"] == builder.recipe.sha256
    for absolute in (str(recipes), str(tmp_path), str(Path.home()), str(Path.cwd())):
        assert absolute not in text
    AutoModel.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == text


def test_the_recipe_lies_beside_the_weights(
    tiny: dict[str, Any], tmp_path: Path, to_yaml: Callable[[dict[str, Any]], Path]
) -> None:
    written = to_yaml(tiny)
    builder = Builder.from_recipe(written)
    builder.build().save_pretrained(tmp_path / "one")
    AutoModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for directory in ("one", "two"):
        assert (tmp_path / directory / "recipe.yaml").read_text() == written.read_text()
        again = Builder.from_recipe(tmp_path / directory / "recipe.lock.yaml")
        assert again.recipe.resolved() == builder.recipe.resolved()
