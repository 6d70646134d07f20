"""Weights from elsewhere, and weights that two modules share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, T5Config, T5EncoderModel, ViTConfig, ViTModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.policy.storage import tied_weights
from policysmith.components.backbones.mlp import MlpBackbone

Batches = Callable[..., dict[str, Any]]
Refused = Callable[[Callable[[], Any]], Any]


def vit(directory: Path) -> ViTModel:
    sizes = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    model = ViTModel(sizes, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape)
    model.save_pretrained(directory)
    return model


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe with a pretrained Vision Transformer that lies beside it, in `parts/vit`."""
    vit(tmp_path / "parts" / "vit")
    tiny["policy"]["backbones"]["vision"] = {"type": "vit", "pretrained": "parts/vit"}
    return tiny


def test_pretrained_weights_survive_construction_and_a_reload(
    recipe: dict[str, Any], tmp_path: Path, to_yaml: Any
) -> None:
    policy = Builder.from_recipe(to_yaml(recipe)).build()
    expected = ViTModel.from_pretrained(tmp_path / "parts" / "vit", add_pooling_layer=False).state_dict()
    policy.save_pretrained(tmp_path / "saved")
    for found in (policy, AutoModel.from_pretrained(tmp_path / "saved")):
        state = found.backbones["vision"].model.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in state.items())


def test_relative_weights_start_at_the_recipe_and_leave_no_path(
    recipe: dict[str, Any],
    tmp_path: Path,
    to_yaml: Any,
    monkeypatch: pytest.MonkeyPatch,
    batch: Batches,
    saved_tokenizer: Any,
) -> None:
    recipe["collator"] = saved_tokenizer(tmp_path) | {"tokenizer": "tokenizer"}
    recipe["data"]["path"] = os.path.relpath(recipe["data"]["path"], tmp_path)
    path = to_yaml(recipe)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    builder = Builder.from_recipe(path)
    policy = builder.build()
    assert policy.backbones["vision"].config.pretrained == "parts/vit"
    assert builder.collate(policy)([{"task": "open"}])["task.input_ids"][0, 0] == 2
    policy.save_pretrained("saved")
    assert str(tmp_path) not in Path("saved/config.json").read_text()
    (tmp_path / "parts").rename(tmp_path / "gone")
    (tmp_path / "tokenizer").rename(tmp_path / "gone_too")
    loaded = AutoModel.from_pretrained("saved")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(loaded.inference(batch()), policy.inference(batch()))
    assert loaded.collator([{"task": "open"}])["task.input_ids"][0, 0] == 2


def _no_config(source: Path) -> None:
    (source / "config.json").unlink()


def _cut_weights(source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def _no_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()


def _other_weights(source: Path) -> None:
    text = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**text, "num_hidden_layers": 2}))


@pytest.mark.parametrize("damage", [_no_config, _cut_weights, _no_weights, _other_weights])
def test_unreadable_weights_are_found_by_check_at_their_place(
    damage: Callable[[Path], None], recipe: dict[str, Any], tmp_path: Path, to_yaml: Any, refused: Refused
) -> None:
    damage(tmp_path / "parts" / "vit")
    (finding,) = refused(Builder.from_recipe(to_yaml(recipe)).check)
    assert finding.code == "E024 bad-weights"
    assert finding.span.text == '"parts/vit"'


def test_all_weights_that_cannot_be_read_are_reported(
    recipe: dict[str, Any], to_yaml: Any, refused: Refused
) -> None:
    recipe["policy"]["backbones"]["vision"]["pretrained"] = "nowhere/vit"
    recipe["collator"] = {"type": "language", "tokenizer": "nowhere/tokenizer"}
    found = refused(Builder.from_recipe(to_yaml(recipe)).check)
    assert [finding.code for finding in found] == ["E024 bad-weights"] * 2
    assert {finding.span.text for finding in found} == {'"nowhere/vit"', '"nowhere/tokenizer"'}


def test_weights_of_timm_are_checked_too(
    tiny: dict[str, Any], tmp_path: Path, to_yaml: Any, refused: Refused
) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    part = {
        "type": "timm",
        "name": "test_efficientnet",
        "pretrained": "other.pth",
        "positions": "interpolate",
    }
    tiny["policy"]["backbones"]["vision"] = part
    for transform in tiny["transforms"]:
        if transform["type"] == "normalize_image":
            transform["stats"] = "imagenet"
    (finding,) = refused(Builder.from_recipe(to_yaml(tiny)).check)
    assert (finding.code, finding.span.text) == ("E024 bad-weights", '"other.pth"')


def test_weights_that_transformers_ties_stay_tied(
    tiny: dict[str, Any], tmp_path: Path, batch: Batches, saved_tokenizer: Any
) -> None:
    """T5 has its embedding twice; a checkpoint holds it once."""
    sizes = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(sizes).save_pretrained(tmp_path / "t5")
    tiny["policy"]["backbones"]["text"] = {"type": "language", "pretrained": str(tmp_path / "t5")}
    tiny["collator"] = saved_tokenizer(tmp_path)
    policy = Builder.from_recipe(tiny).build()
    policy.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    for found in (policy, loaded):
        model = found.backbones["text"].model
        assert model.shared.weight is model.encoder.embed_tokens.weight
    assert torch.equal(loaded.inference(batch()), policy.inference(batch()))


@pytest.fixture
def sharing_part(monkeypatch: pytest.MonkeyPatch) -> type[MlpBackbone]:
    """A backbone two of whose layers share their weight."""
    original = MlpBackbone.__init__

    def build(self: MlpBackbone, *arguments: Any) -> None:
        original(self, *arguments)
        self.layers[2].weight = self.layers[0].weight

    monkeypatch.setattr(MlpBackbone, "__init__", build)
    return MlpBackbone


def _square(recipe: dict[str, Any]) -> dict[str, Any]:
    recipe["policy"]["backbones"]["proprio"] = {"type": "mlp", "hidden": [4], "width": 4}
    return recipe


def test_shared_weights_that_nobody_declared_are_refused_by_both_names(
    tiny: dict[str, Any], sharing_part: Any, refused: Refused, to_yaml: Any
) -> None:
    (finding,) = refused(Builder.from_recipe(to_yaml(_square(tiny))).check)
    for layer in (0, 2):
        assert f"`backbones.proprio.layers.{layer}.weight`" in finding.message
    assert "_tied_weights_keys" in finding.help


def test_views_of_one_tensor_are_refused(tiny: dict[str, Any]) -> None:
    policy = Builder.from_recipe(tiny).build()
    assert tied_weights.undeclared(policy) == []
    layer = policy.head.layers[0]
    layer.bias = torch.nn.Parameter(layer.weight.data.view(-1)[:16])
    assert tied_weights.undeclared(policy) == [("head.layers.0.weight", "head.layers.0.bias")]


def test_declared_weights_are_saved_once_and_shared_again(
    tiny: dict[str, Any],
    sharing_part: Any,
    tmp_path: Path,
    batch: Batches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ties = {"layers.2.weight": "layers.0.weight"}
    monkeypatch.setattr(sharing_part, "_tied_weights_keys", ties, raising=False)
    policy = Builder.from_recipe(_square(tiny)).build()
    policy.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, RecipePolicy)
    layers: Any = loaded.backbones["proprio"].layers
    assert layers[0].weight is layers[2].weight
    assert torch.equal(loaded.inference(batch()), policy.inference(batch()))


def test_parts_keep_their_own_initial_weights(tiny: dict[str, Any]) -> None:
    """transformers would draw them anew."""
    tiny["policy"]["head"] = {
        "type": "flow_matching",
        "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2},
    }
    policy = Builder.from_recipe(tiny).build()
    assert (policy.head.network.action_out.weight == 0).all()
    tiny["policy"]["head"] = {"type": "mlp", "hidden": [64]}
    tiny["name"] = "other"
    weight = Builder.from_recipe(tiny).build().head.layers[0].weight
    assert weight.abs().max() <= weight.shape[1] ** -0.5  # as torch draws them
    assert weight.std() > 0.05
