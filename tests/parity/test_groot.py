"""The action head of GR00T N1.7 with LeRobot's weights, on features that LeRobot's neck made: `attend` both ways."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.features import masked_mean
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.schemas.specs import Kind, Spec

from .expert_policies import differences, gradients_of
from .golden import Golden, load

ROBOTS = {
    "state_encoder.layer1": "states.proprio_pooled.layers.0",
    "state_encoder.layer2": "states.proprio_pooled.layers.1",
    "action_encoder.W1": "action_in",
    "action_encoder.W2": "action_mlp.layers.0",
    "action_encoder.W3": "action_mlp.layers.1",
    "action_decoder.layer1": "action_out.layers.0",
    "action_decoder.layer2": "action_out.layers.1",
}
LINEAR = {
    "model.timestep_encoder.timestep_embedder.linear_1": "time.0",
    "model.timestep_encoder.timestep_embedder.linear_2": "time.2",
    "model.proj_out_1": "modulation",
    "model.proj_out_2": "out",
}
BLOCK = {
    "norm1.linear": "modulation",
    "attn1.to_q": "attention.query",
    "attn1.to_out.0": "attention.out",
    "ff.net.0.proj": "mlp.0",
    "ff.net.2": "mlp.3",
}


def names(depth: int) -> dict[str, str]:
    """Map their names to ours for layers with equal weights."""
    blocks = {
        f"model.transformer_blocks.{i}.{a}": f"blocks.{i}.{b}" for i in range(depth) for a, b in BLOCK.items()
    }
    linear = {
        f"{a}.{kind}": f"{b}.{kind}" for a, b in {**LINEAR, **blocks}.items() for kind in ("weight", "bias")
    }
    return linear | {
        f"{a}.{old}": f"{b}.{new}" for a, b in ROBOTS.items() for old, new in (("W", "weight"), ("b", "bias"))
    }


@pytest.fixture(params=["groot", "groot_dit"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


@pytest.fixture
def head(golden: Golden) -> FlowMatching:
    sizes = golden.config
    cfg = sizes["diffusion_model_cfg"]
    tokens = Spec(Kind.TOKENS, ("B", 7, sizes["backbone_embedding_dim"]))
    turns = sizes["use_alternate_vl_dit"]
    config = FlowMatching.Config.model_validate(
        {
            "type": "flow_matching",
            "network": {
                "type": "groot_dit",
                "width": sizes["input_embedding_dim"],
                "depth": cfg["num_layers"],
                "heads": cfg["num_attention_heads"],
                "hidden": sizes["hidden_size"],
                "attend": "in_turn" if turns else "together",
            },
            "padded_dims": "noise",
            "steps": sizes["num_inference_timesteps"],
        }
    )
    specs = {
        **({"text.tokens": tokens, "images.tokens": tokens} if turns else {"vlm.tokens": tokens}),
        "proprio.pooled": Spec(Kind.POOLED, ("B", sizes["max_state_dim"])),
        "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=sizes["max_num_embodiments"]),
        "action": Spec(Kind.ACTION, ("B", sizes["action_horizon"], sizes["max_action_dim"])),
    }
    FlowMatching.specs(config, specs, {})
    built = FlowMatching(config, specs, {}).eval()
    weights, ours = golden.weights(), {}
    for theirs, name in names(cfg["num_layers"]).items():
        ours[name] = weights[theirs]
    ours["action_positions"] = weights["position_embedding.weight"][None, : sizes["action_horizon"]]
    for i in range(cfg["num_layers"]):
        for kind in ("weight", "bias"):
            pair = [weights[f"model.transformer_blocks.{i}.attn1.to_{half}.{kind}"] for half in "kv"]
            ours[f"blocks.{i}.attention.key_value.{kind}"] = torch.cat(pair)
    built.network.load_state_dict(ours, strict=True)
    return built


def features(golden: Golden) -> dict[str, Feature]:
    given, context = golden.inputs, golden.outputs["context"]
    text = given["token_mask"] & ~given["image_mask"]
    return {
        "text.tokens": Feature(context, text),
        "images.tokens": Feature(context, given["token_mask"] & given["image_mask"]),
        "vlm.tokens": Feature(context),  # LeRobot shows padded tokens
        "proprio.pooled": Feature(given["observation.state"][:, 0]),
        "embodiment": Feature(given["embodiment"]),
    }


def velocity(head: FlowMatching, golden: Golden) -> Tensor:
    at = golden.draws["time"][:, None, None]
    noisy = (1.0 - at) * golden.draws["noise"] + at * golden.inputs["action"]
    found: Tensor = head.network(noisy, golden.draws["time"], head.network.encode(features(golden)))
    return found


def test_states_are_lerobots(head: FlowMatching, golden: Golden) -> None:
    context = head.network.encode(features(golden))
    torch.testing.assert_close(context["tokens"], golden.outputs["state_token"], atol=1e-5, rtol=1e-5)


def test_every_block_is_lerobots(head: FlowMatching, golden: Golden) -> None:
    seen: list[Tensor] = []
    network: Any = head.network
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _args, out: seen.append(out))
    found = velocity(head, golden)
    expected = golden.outputs["blocks"]
    largest = float(
        expected.abs().max()
    )  # hidden states are sums of such values, rounded by each processor its own way
    torch.testing.assert_close(torch.stack(seen), expected, atol=1e-5 * largest, rtol=1e-5)
    torch.testing.assert_close(found, golden.outputs["velocity"], atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_lerobots(head: FlowMatching, golden: Golden) -> None:
    depth = golden.config["diffusion_model_cfg"]["num_layers"]
    target = golden.inputs["action"] - golden.draws["noise"]
    absent = torch.arange(target.shape[-1]) >= golden.config["action"]
    loss = masked_mean(
        (velocity(head, golden) - target) ** 2, golden.inputs["action_is_pad"][..., None] | absent
    )
    torch.testing.assert_close(loss, golden.outputs["loss"], atol=1e-5, rtol=1e-6)
    loss.backward()
    ours = gradients_of(head.network)
    theirs = {old: ours[new] for old, new in names(depth).items()}
    positions = ours["action_positions"][0]
    unused = golden.config["max_seq_len"] - len(positions)
    theirs["position_embedding.weight"] = torch.nn.functional.pad(positions, (0, 0, 0, unused))
    for i in range(depth):
        for kind in ("weight", "bias"):
            halves = ours[f"blocks.{i}.attention.key_value.{kind}"].chunk(2)
            for letter, half in zip("kv", halves, strict=True):
                theirs[f"model.transformer_blocks.{i}.attn1.to_{letter}.{kind}"] = half
    found = differences(theirs, golden)
    assert len(found) > 70
    assert max(found.values()) < 1e-5


def test_samples_are_lerobots(head: FlowMatching, golden: Golden) -> None:
    steps: list[Tensor] = []
    head.network.register_forward_hook(lambda _module, _args, out: steps.append(out))
    with mock.patch.object(torch, "randn", return_value=golden.draws["sampling_noise"]):
        sample = head.sample(features(golden))
    torch.testing.assert_close(torch.stack(steps), golden.outputs["step_velocities"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample, golden.outputs["sample"], atol=1e-5, rtol=1e-5)
