"""pi0 and pi0.5 with LeRobot's weights: loss, velocity, gradients and samples, through our backbone and our expert."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PaliGemmaConfig

from policysmith.builder.interop.lerobot.policies import pi0, pi05, smolvla
from policysmith.builder.interop.lerobot.policies.pi0 import to_lerobot, to_policysmith
from policysmith.components.features import masked_mean
from policysmith.schemas.errors import WeightsError

from .expert_policies import Policy, differences, gradients_of, resolved
from .golden import Golden, load


def architecture(golden: Golden, directory: Path) -> str:
    """Save the vision-language model of a golden to a directory."""
    text, vision = golden.config["paligemma"], golden.config["vision"]
    PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            "hidden_size": text["width"],
            "intermediate_size": text["mlp_dim"],
            "num_hidden_layers": text["depth"],
            "num_attention_heads": text["num_heads"],
            "num_key_value_heads": text["num_kv_heads"],
            "head_dim": text["head_dim"],
            "vocab_size": 64,
        },
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        projection_dim=text["width"],
        image_token_index=0,
    ).save_pretrained(directory)
    return str(directory)


@pytest.fixture(params=["pi0", "pi05"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


def kind(golden: Golden) -> str:
    return "pi05" if "condition" in golden.outputs else "pi0"


@dataclass(frozen=True)
class Converted:
    """A golden's weights in our policy."""

    policy: Policy
    recipe: dict[str, Any]
    config: dict[str, Any]
    """LeRobot's."""

    def back(self, values: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """LeRobot's config, and values of our weights by LeRobot's names."""
        return to_lerobot(values, {"recipe": self.recipe})


@pytest.fixture
def converted(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converted:
    monkeypatch.setattr(pi0, "VARIANTS", {32: "gemma_2b", 24: "gemma_300m"})
    config = {"type": kind(golden), **golden.config}
    sections, weights = to_policysmith(golden.weights(), config, architecture(golden, tmp_path))
    recipe = resolved(sections)
    policy = Policy(recipe, golden).eval()
    policy.load_state_dict(weights, strict=True)
    return Converted(policy, recipe, config)


@pytest.fixture
def policy(converted: Converted) -> Policy:
    return converted.policy


def test_velocity_is_lerobots(policy: Policy, golden: Golden) -> None:
    torch.testing.assert_close(policy.velocity(), golden.outputs["velocity"], atol=1e-5, rtol=1e-5)


def test_loss_is_lerobots(policy: Policy, golden: Golden) -> None:
    """Over the robot's own dimensions, as LeRobot has it, and over all of them, as openpi has it."""
    everything = torch.zeros(policy.actions.shape, dtype=torch.bool)
    for is_pad, key in ((policy.padding(steps=False), "loss"), (everything, "loss_all_dims")):
        torch.testing.assert_close(policy.loss(is_pad), golden.outputs[key], atol=1e-5, rtol=1e-6)


def test_gradients_are_lerobots(converted: Converted, golden: Golden) -> None:
    """Gradients agree for all weights, including vision tower and language model."""
    policy = converted.policy
    target = golden.draws["noise"] - policy.actions
    loss = masked_mean((policy.velocity() - target) ** 2, policy.padding(steps=True))
    torch.testing.assert_close(loss, golden.outputs["loss_masked"], atol=1e-5, rtol=1e-6)
    loss.backward()
    found = differences(converted.back(gradients_of(policy))[1], golden)
    assert found.keys() == golden.gradients.keys()
    assert max(found.values()) < 1e-5


def test_samples_are_lerobots(policy: Policy, golden: Golden) -> None:
    """From one point of the original's way to the next, and all the way."""
    sample, steps = policy.sample()
    torch.testing.assert_close(steps, golden.outputs["step_velocities"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample, golden.outputs["sample"], atol=1e-5, rtol=1e-5)


def test_weights_come_back(converted: Converted, golden: Golden) -> None:
    config, state = converted.back(converted.policy.state_dict())
    weights = golden.weights()
    assert {key: converted.config.get(key, value) for key, value in config.items()} == config
    assert state.keys() == weights.keys()
    for key, value in weights.items():
        assert value.shape == state[key].shape, key
        assert key.endswith("lm_head.weight") or torch.equal(value, state[key]), key


def test_converters_know_their_recipes(converted: Converted) -> None:
    found = [module.is_of(converted.recipe) for module in (pi0, pi05, smolvla)]
    assert found == [converted.config["type"] == name for name in ("pi0", "pi05", "smolvla")]
    other = {"policy": {"type": "composed", "head": {"type": "mlp"}}}
    assert not any(module.is_of(other) for module in (pi0, pi05, smolvla))


def test_a_file_may_hold_the_language_head_for_the_embedding_that_it_is_tied_to(
    converted: Converted, tmp_path: Path
) -> None:
    _, state = converted.back(converted.policy.state_dict())
    embedding = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    short = {key.removeprefix("model."): value for key, value in state.items() if key != embedding}
    _, weights = to_policysmith(short, converted.config, str(tmp_path))
    for key, value in converted.policy.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("golden", ["pi0"], indirect=True)
def test_other_weights_and_options_are_refused(converted: Converted, golden: Golden, tmp_path: Path) -> None:
    weights, config = golden.weights(), converted.config
    first = "model.action_in_proj.weight"
    others = {"model.other": weights[first], **{key: weights[key] for key in weights if key != first}}
    with pytest.raises(WeightsError, match=rf"missing: {first}; unexpected: model\.other$"):
        to_policysmith(others, config, str(tmp_path))
    with pytest.raises(WeightsError, match=r"missing: .*layernorm\.dense\.bias"):
        to_policysmith(weights, {**config, "type": "pi05"}, str(tmp_path))
    with pytest.raises(WeightsError, match=r"`min_period: 0\.1` cannot be converted"):
        to_policysmith(weights, {**config, "min_period": 0.1}, str(tmp_path))
    with pytest.raises(WeightsError, match=r"noise levels reach 0\.9"):
        to_policysmith(weights, {**config, "time_sampling_scale": 0.899}, str(tmp_path))


@pytest.mark.parametrize("golden", ["pi0"], indirect=True)
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("head.noise_at", 0, "`noise_at: 0` cannot be converted"),
        ("head.padded_dims", "zero", "`padded_dims: zero` cannot be converted"),
        ("head.network.joint_every", 2, "`joint_every: 2` cannot be converted"),
        ("head.network.width", 48, "not 48"),
        ("head.levels", {"type": "uniform"}, "from `beta`, not from `uniform`"),
        ("backbones.vlm.queries", 3, "`queries: 3` cannot be converted"),
        ("backbones.proprio.type", "mlp", r"this policy has `vlm` \(vlm\) and `proprio` \(mlp\)"),
        ("necks", {"pool": {"type": "concat"}}, "no necks"),
    ],
)
def test_what_lerobot_lacks_is_refused(converted: Converted, path: str, value: Any, message: str) -> None:
    recipe = copy.deepcopy(converted.recipe)
    *steps, last = path.split(".")
    section = recipe["policy"]
    for step in steps:
        section = section[step]
    section[last] = value
    with pytest.raises(WeightsError, match=message):
        to_lerobot(converted.policy.state_dict(), {"recipe": recipe})


def test_the_published_size_is_converted_by_its_own_name() -> None:
    """LeRobot's names for all weights of pi0, from our policy at its published size, on no device."""
    with torch.device("meta"):
        model = pi0.model_of(pi0.ARCHITECTURE)
        count = sum(weight.numel() for weight in model.build().state_dict().values())
    assert model.depth == 18
    assert count == pytest.approx(2.92e9, rel=0.01)
    theirs = [pair.theirs for pair in pi0._pairs(model, adaptive=False)]
    assert len(theirs) == len(set(theirs))
    assert (
        "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.26.mlp.fc2.bias"
        in theirs
    )
    assert "model.paligemma_with_expert.gemma_expert.model.layers.17.self_attn.o_proj.weight" in theirs
