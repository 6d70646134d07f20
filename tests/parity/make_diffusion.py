"""Goldens of Diffusion Policy (Chi et al., 2023), from LeRobot."""

from __future__ import annotations

from typing import Any

import torch
from golden import gradients, recording, refill, save, uniform
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from torch import Tensor

BATCH, STEPS, HORIZON, ACTION, STATE, ENVIRONMENT = 3, 2, 8, 4, 5, 7
IMAGE = (3, 64, 96)
CAMERAS = ("observation.images.front", "observation.images.wrist")
SIZES: dict[str, Any] = {
    "n_obs_steps": STEPS,
    "horizon": HORIZON,
    "n_action_steps": 4,
    "diffusion_step_embed_dim": 16,
    "n_groups": 4,
    "crop_is_random": False,
    "kernel_size": 5,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDPM",
    "num_train_timesteps": 100,
    "num_inference_steps": None,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "diffusion": (
        {
            "down_dims": (8, 16, 24),
            "spatial_softmax_num_keypoints": 4,
            "use_group_norm": True,
            "use_separate_rgb_encoder_per_camera": True,
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 5,
            "do_mask_loss_for_padding": True,
        },
        CAMERAS,
    ),
    "diffusion_shared_encoder": (
        {
            "down_dims": (16, 32),
            "kernel_size": 3,
            "spatial_softmax_num_keypoints": 4,
            "use_group_norm": False,
            "use_separate_rgb_encoder_per_camera": False,
            "crop_shape": (56, 80),
            "num_train_timesteps": 8,
            "do_mask_loss_for_padding": True,
        },
        CAMERAS,
    ),
    "diffusion_sample": (
        {
            "down_dims": (8, 16),
            "use_film_scale_modulation": False,
            "num_train_timesteps": 20,
            "num_inference_steps": 6,
            "prediction_type": "sample",
            "beta_schedule": "linear",
            "clip_sample_range": 0.8,
            "do_mask_loss_for_padding": True,
        },
        (),
    ),
}


def make(name: str, options: dict[str, Any], cameras: tuple[str, ...]) -> None:
    states = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    if not cameras:
        states["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (ENVIRONMENT,))
    policy = DiffusionPolicy(
        DiffusionConfig(
            input_features={**states, **{key: PolicyFeature(FeatureType.VISUAL, IMAGE) for key in cameras}},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            pretrained_backbone_weights=None,
            device="cpu",
            **SIZES | options,
        )
    ).eval()
    weights = refill(policy)
    made = dict.fromkeys(cameras, (BATCH, STEPS, *IMAGE))
    observation = {
        "observation.state": uniform("state", (BATCH, STEPS, STATE)),
        **{key: uniform(f"input/{key}", shape) for key, shape in made.items()},
    }
    if not cameras:
        observation["observation.environment_state"] = uniform("environment", (BATCH, STEPS, ENVIRONMENT))
    batch = {
        **observation,
        "action": uniform("action", (BATCH, HORIZON, ACTION)) / 2,
        "action_is_pad": torch.arange(HORIZON) >= torch.tensor([HORIZON, 5, 1])[:, None],
    }

    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    policy.diffusion.unet.register_forward_hook(
        lambda _module, args, kwargs, out: calls.append((*args, kwargs["global_cond"], out)),
        with_kwargs=True,
    )
    with recording("randn", "randint") as draws:
        loss, _ = policy.forward(batch)
    loss.backward()
    noisy, times, condition, prediction = calls.pop()
    target = draws["randn.0"] if policy.config.prediction_type == "epsilon" else batch["action"]
    error = (prediction - target) ** 2
    valid = ~batch["action_is_pad"]
    outputs = {
        "loss": loss,
        "loss_unmasked": error.mean(),
        "loss_masked": error[valid].mean(),
        "noisy": noisy,
        "condition": condition,
        "prediction": prediction,
    }
    with recording("randn", seed=1) as sampling:
        stacked = dict(observation)
        if cameras:
            stacked["observation.images"] = torch.stack([observation[key] for key in cameras], dim=2)
        with torch.no_grad():
            trajectory = policy.diffusion.conditional_sample(
                BATCH, policy.diffusion._prepare_global_conditioning(stacked)
            )
    outputs |= {
        "trajectory": trajectory,
        "steps": torch.stack([x for x, *_ in calls]),
        "timesteps": torch.stack([t[0] for _, t, *_ in calls]),
        "sample": trajectory[:, STEPS - 1 : STEPS - 1 + policy.config.n_action_steps],
        "alphas_cumprod": policy.diffusion.noise_scheduler.alphas_cumprod,
    }
    executed = policy.predict_action_chunk(observation, noise=sampling["randn.0"])
    if policy.config.noise_scheduler_type == "DDIM":
        torch.testing.assert_close(executed, outputs["sample"])
    step_noise = [value for key, value in sampling.items() if key != "randn.0"]
    save(
        name,
        config={**SIZES, **options, "cameras": list(cameras)},
        weights=weights,
        inputs=batch,
        made_inputs=made,
        draws={
            "epsilon": draws["randn.0"],
            "timestep": times,
            "sampling_noise": sampling["randn.0"],
            **({"step_noise": torch.stack(step_noise)} if step_noise else {}),
        },
        outputs=outputs,
        gradients=gradients(policy),
        note="all in evaluation mode; steps are the inputs of the network at each of timesteps while sampling",
    )


if __name__ == "__main__":
    for case, (options, cameras) in CASES.items():
        make(case, options, cameras)
