"""Policies with low-rank adapters: built, trained, saved, and their weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel

from policysmith.builder import Builder

Batches = Callable[..., dict[str, Any]]
Refused = Callable[[Callable[[], Any]], Any]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe with a pretrained encoder, which lies beside it, and adapters in it."""
    torch.manual_seed(4)
    CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(tmp_path / "clip")
    tiny["policy"]["backbones"]["vision"] = {
        "type": "vision",
        "pretrained": "clip",
        "lora": {"rank": 2, "targets": ["*.q_proj", "*.v_proj"]},
    }
    return tiny


def trainable(policy: torch.nn.Module) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_weights_from_elsewhere_find_the_layers_beside_the_adapters(
    recipe: dict[str, Any], tmp_path: Path, to_yaml: Any, batch: Batches
) -> None:
    builder = Builder.from_recipe(to_yaml(recipe))
    policy = builder.build()
    expected = CLIPVisionModel.from_pretrained(tmp_path / "clip").state_dict()
    held = policy.backbones["vision"].model.state_dict()
    found = {key.replace(".base_layer", ""): value for key, value in held.items() if ".lora_" not in key}
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert sum(".lora_" in key for key in held) == 2 * 2 * 2
    plain = builder.override({"policy.backbones.vision.lora": None}).build()
    plain.head.load_state_dict(policy.head.state_dict())
    plain.backbones["proprio"].load_state_dict(policy.backbones["proprio"].state_dict())
    assert torch.equal(policy.inference(batch()), plain.inference(batch()))


def test_only_adapters_of_the_backbone_train_and_a_loaded_policy_knows(
    recipe: dict[str, Any], tmp_path: Path, to_yaml: Any
) -> None:
    recipe["policy"]["freeze"] = ["*.layers.0.*.lora_A.*", "backbones.proprio.*"]
    builder = Builder.from_recipe(to_yaml(recipe))
    policy = builder.build()
    names = trainable(policy)
    of_vision = {name for name in names if name.startswith("backbones.vision.")}
    assert len(of_vision) == 2 * 2 * 2 - 2
    assert all(".lora_" in name for name in of_vision)
    assert {name.split(".")[0] for name in names - of_vision} == {"head"}
    assert (
        policy.frozen == builder.summary.frozen == {"*.layers.0.*.lora_A.*": 64, "backbones.proprio.*": 112}
    )
    policy.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert trainable(loaded) == names
    loaded.train()
    assert not loaded.backbones["vision"].model.embeddings.training
    assert loaded.backbones["vision"].model.encoder.layers[1].training


def test_a_step_moves_adapters_and_leaves_the_rest(
    recipe: dict[str, Any], to_yaml: Any, tmp_path: Path, batch: Batches
) -> None:
    result = Builder.from_recipe(to_yaml(recipe)).train(output=tmp_path / "run", device="cpu")
    before = Builder.from_recipe(to_yaml(recipe)).build().state_dict()
    after = AutoModel.from_pretrained(result.checkpoint)
    moved = {key for key, value in after.state_dict().items() if not torch.equal(value, before[key])}
    of_vision = {key for key in moved if key.startswith("backbones.vision.")}
    assert of_vision
    assert all(".lora_" in key for key in of_vision)
    assert any(".lora_B." in key for key in of_vision)


def test_sizes_tell_what_trains(
    recipe: dict[str, Any], to_yaml: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from policysmith.schemas.console import policysmith

    path = to_yaml(recipe)
    summary = Builder.from_recipe(path).summary
    assert summary is not None
    assert summary.trains["backbones.vision"] == 2 * 2 * 2 * 2 * 16
    assert summary.trainable == sum(summary.trains.values())
    assert summary.trains["head"] == summary.parts["head"]
    assert summary.adapted == {"backbones.vision": 4}
    assert policysmith(["check", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "lora backbones.vision: adapters for 4 layers, all other weights frozen" in shown
    assert " 256 " in shown


def test_the_seed_decides_the_adapters(recipe: dict[str, Any], to_yaml: Any) -> None:
    builder = Builder.from_recipe(to_yaml(recipe))
    one, two = builder.build(), builder.build()
    other = builder.override({"training.seed": 1}).build()
    key = "backbones.vision.model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])


def test_bf16_stays_bf16(recipe: dict[str, Any], to_yaml: Any, tmp_path: Path, batch: Batches) -> None:
    policy = Builder.from_recipe(to_yaml(recipe)).build().to(torch.bfloat16)
    policy.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.inference(batch()), policy.inference(batch()))


@pytest.mark.parametrize(
    ("path", "value", "text", "message"),
    [
        (
            "policy.backbones.vision.lora.targets",
            ["*.q_proj", "*.query"],
            '"*.query"',
            "no layer that can have an adapter matches `*.query`",
        ),
        ("policy.backbones.proprio", {"type": "state", "lora": {}}, None, "no linear layer for an adapter"),
        (
            "policy.backbones.proprio.gradient_checkpointing",
            True,
            "true",
            "does not support recomputation of its layers",
        ),
    ],
)
def test_what_cannot_be_is_told_at_its_place(
    path: str,
    value: Any,
    text: str | None,
    message: str,
    recipe: dict[str, Any],
    to_yaml: Any,
    refused: Refused,
) -> None:
    target, *steps = recipe, *path.split(".")
    for step in steps[:-1]:
        target = target[step]
    target[steps[-1]] = value
    (finding,) = refused(Builder.from_recipe(to_yaml(recipe)).check)
    assert message in finding.message
    assert finding.help
    assert text is None or finding.span.text == text


def test_layers_computed_again_give_the_same_losses(
    recipe: dict[str, Any], to_yaml: Any, batch: Batches
) -> None:
    losses = []
    for again in (False, True):
        recipe["policy"]["backbones"]["vision"]["gradient_checkpointing"] = again
        policy = Builder.from_recipe(to_yaml(recipe)).build().train()
        torch.manual_seed(0)
        loss = policy(batch())["loss"]
        loss.backward()
        losses.append([loss, *(p.grad for p in policy.parameters() if p.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))
