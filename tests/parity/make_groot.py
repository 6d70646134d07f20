"""Goldens of the action head of GR00T N1.7 (Bjorck et al., 2025), from LeRobot."""

from __future__ import annotations

from typing import Any

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.policies.groot.groot_n1_7 import GR00TN17ActionHead, GR00TN17Config
from torch import Tensor
from transformers import BatchFeature

BATCH, HORIZON, ACTION, STATE, TOKENS = 3, 5, 4, 5, 7
SIZES: dict[str, Any] = {
    "backbone_embedding_dim": 24,
    "max_state_dim": 7,
    "max_action_dim": 6,
    "action_horizon": HORIZON,
    "hidden_size": 20,
    "input_embedding_dim": 32,
    "max_seq_len": 16,
    "max_num_embodiments": 3,
    "num_inference_timesteps": 4,
    "num_timestep_buckets": 1000,
    "noise_s": 0.999,
    "attend_text_every_n_blocks": 2,
    "diffusion_model_cfg": {
        "positional_embeddings": None,
        "num_layers": 6,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "norm_type": "ada_norm",
        "dropout": 0.2,
        "final_dropout": True,
        "output_dim": 20,
        "interleave_self_attention": True,
    },
    "vl_self_attention_cfg": {
        "positional_embeddings": None,
        "num_layers": 2,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "dropout": 0.2,
        "final_dropout": True,
    },
}


def make(name: str, alternate: bool) -> None:
    head = GR00TN17ActionHead(GR00TN17Config(**SIZES, use_alternate_vl_dit=alternate)).float().eval()
    weights = refill(head)
    valid = torch.arange(HORIZON) < torch.tensor([HORIZON, 3, 1])[:, None]
    action = torch.zeros(BATCH, HORIZON, SIZES["max_action_dim"])
    action[..., :ACTION] = uniform("action", (BATCH, HORIZON, ACTION))
    state = torch.zeros(BATCH, 1, SIZES["max_state_dim"])
    state[..., :STATE] = uniform("state", (BATCH, 1, STATE))
    inputs = {
        "tokens": uniform("tokens", (BATCH, TOKENS, SIZES["backbone_embedding_dim"])),
        "token_mask": torch.arange(TOKENS) < torch.tensor([TOKENS, 6, 5])[:, None],
        "image_mask": (torch.arange(TOKENS) >= torch.tensor([1, 0, 2])[:, None])
        & (torch.arange(TOKENS) < torch.tensor([4, 3, 4])[:, None]),
        "observation.state": state,
        "action": action,
        "action_is_pad": ~valid,
        "embodiment": torch.tensor([2, 0, 2]),
    }

    def backbone() -> BatchFeature:
        return BatchFeature(
            {
                "backbone_features": inputs["tokens"],
                "backbone_attention_mask": inputs["token_mask"],
                "image_mask": inputs["image_mask"],
            }
        )

    asked = BatchFeature(
        {
            "state": state,
            "action": action,
            "action_mask": (valid[..., None] & (torch.arange(action.shape[-1]) < ACTION)).float(),
            "embodiment_id": inputs["embodiment"],
        }
    )
    seen: dict[str, list[Tensor]] = {"time": [], "velocity": [], "hidden": []}
    sample_time = head.sample_time
    head.sample_time = lambda *args, **kwargs: (
        seen["time"].append(sample_time(*args, **kwargs)) or seen["time"][-1]
    )
    head.action_decoder.register_forward_hook(lambda _module, _args, out: seen["velocity"].append(out))
    hooks = [
        block.register_forward_hook(lambda _module, _args, out: seen["hidden"].append(out))
        for block in head.model.transformer_blocks
    ]
    with recording("randn") as draws:
        result = head(backbone(), asked)
    for hook in hooks:
        hook.remove()
    result["loss"].backward()
    outputs = {
        "loss": result["loss"],
        "velocity": seen["velocity"].pop()[:, -HORIZON:],
        "context": result["backbone_features"],
        "state_token": result["state_features"],
        "blocks": torch.stack(seen["hidden"]),
    }
    with recording("randn", seed=1) as sampling:
        outputs["sample"] = head.get_action(
            backbone(), BatchFeature({"state": state, "embodiment_id": inputs["embodiment"]})
        )["action_pred"]
    outputs["step_velocities"] = torch.stack(seen["velocity"])[:, :, -HORIZON:]
    save(
        name,
        config={**SIZES, "use_alternate_vl_dit": alternate, "action": ACTION, "state": STATE},
        weights=weights,
        inputs=inputs,
        draws={"noise": draws["randn.0"], "time": seen["time"][0], "sampling_noise": sampling["randn.0"]},
        outputs=outputs,
        gradients=gradients(head),
        note="evaluation mode; the loss is over valid steps and real dims; blocks (layers, B, 1 + T, D)",
    )


if __name__ == "__main__":
    make("groot", alternate=True)
    make("groot_dit", alternate=False)
