"""SmolVLA with LeRobot's weights: keys and values, loss, velocity, gradients and samples, through backbone and expert."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SmolVLMConfig

from policysmith.builder.interop.lerobot.policies.smolvla import is_of, to_lerobot, to_policysmith
from policysmith.components.features import masked_mean
from policysmith.schemas.errors import WeightsError

from .expert_policies import Policy, differences, gradients_of, resolved
from .golden import Golden, load


@pytest.fixture
def golden() -> Golden:
    return load("smolvla")


@pytest.fixture
def config(golden: Golden, tmp_path: Path) -> dict[str, Any]:
    """LeRobot's config, with the vision-language model in a directory."""
    text, vision = ({"model_type": "llama"}, {"model_type": "smolvlm_vision"})
    SmolVLMConfig(
        text_config={**text, **golden.config["text"]},
        vision_config={**vision, **golden.config["vision"]},
        scale_factor=golden.config["scale_factor"],
        image_token_id=1,
    ).save_pretrained(tmp_path)
    return {"type": "smolvla", "vlm_model_name": str(tmp_path), **golden.config}


@pytest.fixture
def recipe(golden: Golden, config: dict[str, Any]) -> dict[str, Any]:
    return resolved(to_policysmith(golden.weights(), config)[0])


@pytest.fixture
def policy(golden: Golden, config: dict[str, Any], recipe: dict[str, Any]) -> Policy:
    _, weights = to_policysmith(golden.weights(), config)
    built = Policy(recipe, golden).eval()
    built.load_state_dict(weights, strict=True)
    return built


def test_prefix_is_lerobots(policy: Policy, golden: Golden) -> None:
    """Return valid keys and values of all layers, including the state's."""
    feature = policy.features()["vlm.key_values"]
    theirs = torch.stack([golden.outputs["keys"], golden.outputs["values"]], dim=2).transpose(0, 1)
    assert feature.mask is not None
    assert torch.equal(feature.mask, golden.outputs["prefix_mask"].bool())
    seen = feature.mask[:, None, None, None, :, None]
    torch.testing.assert_close(feature.values * seen, theirs * seen, atol=1e-5, rtol=1e-5)


def test_velocity_is_lerobots(policy: Policy, golden: Golden) -> None:
    torch.testing.assert_close(policy.velocity(), golden.outputs["velocity"], atol=1e-5, rtol=1e-5)


def test_loss_is_lerobots(policy: Policy, golden: Golden) -> None:
    torch.testing.assert_close(
        policy.loss(policy.padding(steps=False)), golden.outputs["loss"], atol=1e-5, rtol=1e-6
    )


def test_gradients_are_lerobots(policy: Policy, golden: Golden, recipe: dict[str, Any]) -> None:
    target = golden.draws["noise"] - policy.actions
    loss = masked_mean((policy.velocity() - target) ** 2, policy.padding(steps=True))
    torch.testing.assert_close(loss, golden.outputs["loss_masked"], atol=1e-5, rtol=1e-6)
    loss.backward()
    _, gradients = to_lerobot(gradients_of(policy), {"recipe": recipe})
    found = differences(gradients, golden)
    assert found.keys() == golden.gradients.keys()
    assert max(found.values()) < 1e-5


def test_samples_are_lerobots(policy: Policy, golden: Golden) -> None:
    sample, steps = policy.sample()
    torch.testing.assert_close(steps, golden.outputs["step_velocities"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample, golden.outputs["sample"], atol=1e-5, rtol=1e-5)


def test_weights_come_back(
    policy: Policy, golden: Golden, config: dict[str, Any], recipe: dict[str, Any]
) -> None:
    found, state = to_lerobot(policy.state_dict(), {"recipe": recipe})
    weights = golden.weights()
    assert is_of(recipe)
    assert {key: config[key] for key in found} == found
    assert state.keys() == weights.keys()
    for key, value in weights.items():
        assert value.shape == state[key].shape, key
        assert key.endswith("lm_head.weight") or torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, []),
        ({"freeze_vision_encoder": True}, ["backbones.vlm.model.vision_model.*"]),
        ({"train_expert_only": True}, ["backbones.vlm.model.*"]),
        (
            {"train_expert_only": True, "train_state_proj": False},
            ["backbones.vlm.model.*", "backbones.vlm.state.*"],
        ),
    ],
)
def test_what_lerobot_freezes_is_frozen(
    golden: Golden, config: dict[str, Any], options: dict[str, Any], frozen: list[str]
) -> None:
    sections, _ = to_policysmith(golden.weights(), {**config, **options})
    assert sections["policy"]["freeze"] == frozen


def test_other_weights_and_options_are_refused(golden: Golden, config: dict[str, Any]) -> None:
    weights, first = golden.weights(), "model.state_proj.weight"
    with pytest.raises(WeightsError, match=f"missing: {first}$"):
        to_policysmith({key: value for key, value in weights.items() if key != first}, config)
    with pytest.raises(WeightsError, match=r"unexpected: model\.other$"):
        to_policysmith({**weights, "model.other": weights[first]}, config)
    for option, value in (("prefix_length", 7), ("add_image_special_tokens", True)):
        with pytest.raises(WeightsError, match=f"`{option}: {value}` cannot be converted"):
            to_policysmith(weights, {**config, option: value})
    with pytest.raises(WeightsError, match="an expert of 2 layers beside 4"):
        to_policysmith(weights, {**config, "num_expert_layers": 2})
    with pytest.raises(WeightsError, match="without joint layers"):
        to_policysmith(weights, {**config, "self_attn_every_n_layers": -1})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("backbones.vlm.rope", 100_000.0, r"`rope: 100000\.0` cannot be converted"),
        ("head.network.hidden", 512, "`hidden: 512` cannot be converted, only with `hidden: 256`"),
        ("head.network.action_attention", "bidirectional", "`action_attention: bidirectional` cannot"),
        ("head.levels.floor", 0.0, "`levels: .*` cannot be converted"),
        ("backbones.proprio", {"type": "state"}, "one backbone"),
    ],
)
def test_what_lerobot_lacks_is_refused(
    policy: Policy, recipe: dict[str, Any], path: str, value: Any, message: str
) -> None:
    changed = copy.deepcopy(recipe)
    *steps, last = path.split(".")
    section = changed["policy"]
    for step in steps:
        section = section[step]
    section[last] = value
    with pytest.raises(WeightsError, match=message):
        to_lerobot(policy.state_dict(), {"recipe": changed})
