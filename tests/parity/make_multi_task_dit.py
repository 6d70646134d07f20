"""Goldens of the multi-task diffusion transformer (TRI LBM team, 2025), from LeRobot."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit import modeling_multi_task_dit as modeling
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

BATCH, STEPS, HORIZON, ACTION, STATE, LENGTH, VOCABULARY = 3, 2, 6, 4, 5, 7, 64
IMAGE = (3, 32, 32)
CAMERAS = ("observation.images.front", "observation.images.wrist")
VISION = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE[1],
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 10,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 0,
    "eos_token_id": VOCABULARY - 1,
}
SIZES: dict[str, Any] = {
    "n_obs_steps": STEPS,
    "horizon": HORIZON,
    "n_action_steps": 4,
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.0,
    "timestep_embed_dim": 8,
    "image_crop_shape": None,
    "do_mask_loss_for_padding": True,
}
FLOW = {
    "objective": "flow_matching",
    "sigma_min": 0.1,
    "num_integration_steps": 3,
    "use_rope": True,
    "use_positional_encoding": False,
}
CASES: dict[str, dict[str, Any]] = {
    "multi_task_dit": {**FLOW, "integration_method": "euler"},
    "multi_task_dit_rk4": {**FLOW, "integration_method": "rk4"},
    "multi_task_dit_ddim": {
        "objective": "diffusion",
        "noise_scheduler_type": "DDIM",
        "num_train_timesteps": 50,
        "num_inference_steps": 5,
        "use_rope": False,
        "use_positional_encoding": True,
        "use_separate_rgb_encoder_per_camera": True,
    },
}


def build(options: dict[str, Any]) -> Any:
    """Build a policy with a generated instead of a downloaded CLIP."""
    config = MultiTaskDiTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            **{key: PolicyFeature(FeatureType.VISUAL, IMAGE) for key in CAMERAS},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        device="cpu",
        **SIZES,
        **options,
    )

    def vision(_name: str) -> CLIPVisionModel:
        return CLIPVisionModel(CLIPVisionConfig(**VISION))

    def text(_name: str) -> CLIPTextModel:
        return CLIPTextModel(CLIPTextConfig(**TEXT))

    with (
        mock.patch.object(modeling.CLIPVisionModel, "from_pretrained", vision),
        mock.patch.object(modeling.CLIPTextModel, "from_pretrained", text),
    ):
        return modeling.MultiTaskDiTPolicy(config).eval()


def make(name: str, options: dict[str, Any]) -> None:
    policy = build(options)
    weights = refill(policy)
    made = dict.fromkeys(CAMERAS, (BATCH, STEPS, *IMAGE))
    ends = torch.tensor([LENGTH, 5, 3])[:, None]
    tokens = 1 + torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 7 % (VOCABULARY - 2)
    inputs = {
        "observation.state": uniform("state", (BATCH, STEPS, STATE)),
        **{key: uniform(f"input/{key}", shape) for key, shape in made.items()},
        "tokens": torch.where(torch.arange(LENGTH) >= ends - 1, VOCABULARY - 1, tokens),
        "token_mask": torch.arange(LENGTH) < ends,
        "action": uniform("action", (BATCH, HORIZON, ACTION)) / 2,
        "action_is_pad": torch.arange(HORIZON) >= torch.tensor([HORIZON, 4, 1])[:, None],
    }
    batch = {
        **inputs,
        "observation.language.tokens": inputs["tokens"],
        "observation.language.attention_mask": inputs["token_mask"].long(),
        "observation.images": torch.stack([inputs[key] for key in CAMERAS], dim=2),
    }
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    policy.noise_predictor.register_forward_hook(
        lambda _module, args, kwargs, out: calls.append((*args, kwargs["conditioning_vec"], out)),
        with_kwargs=True,
    )
    with recording("randn_like") as draws:
        loss, _ = policy.forward(batch)
    loss.backward()
    noisy, times, condition, prediction = calls.pop()
    with recording("randn", seed=1) as sampling, torch.no_grad():
        sample = policy.objective.conditional_sample(policy.noise_predictor, BATCH, condition.detach())
    save(
        name,
        config={**SIZES, **options, "vision": VISION, "text": TEXT, "cameras": list(CAMERAS)},
        weights=weights,
        inputs=inputs,
        made_inputs=made,
        draws={
            "epsilon": draws["randn_like.0"],
            "time": times,
            "sampling_noise": sampling["randn.0"],
        },
        outputs={
            "loss": loss,
            "noisy": noisy,
            "condition": condition,
            "prediction": prediction,
            "trajectory": sample,
            "steps": torch.stack([x for x, *_ in calls]),
            "times": torch.stack([t[0] for _, t, *_ in calls]),
        },
        gradients=gradients(policy),
        note="evaluation mode; steps are the inputs of the network at each of times while sampling",
    )


if __name__ == "__main__":
    for case, options in CASES.items():
        make(case, options)
