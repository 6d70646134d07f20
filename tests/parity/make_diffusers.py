"""Goldens of noise schedules and samplers, from diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from golden import save, uniform
from torch import Tensor

SHAPE = (3, 4, 3)
CASES: dict[str, tuple[type, dict[str, Any], int]] = {
    "ddpm_epsilon": (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2"}, 100),
    "ddpm_epsilon_few": (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}, 7),
    "ddpm_sample": (DDPMScheduler, {"beta_schedule": "linear", "clip_sample_range": 0.6}, 20),
    "ddpm_v": (DDPMScheduler, {"beta_schedule": "scaled_linear", "clip_sample": False}, 25),
    "ddim_epsilon": (DDIMScheduler, {"beta_schedule": "squaredcos_cap_v2"}, 16),
    "ddim_epsilon_linear": (DDIMScheduler, {"beta_schedule": "linear", "clip_sample": False}, 10),
    "ddim_sample": (DDIMScheduler, {"beta_schedule": "scaled_linear", "clip_sample_range": 0.6}, 9),
    "ddim_v": (DDIMScheduler, {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.1}, 100),
}


def network(chunk: Tensor, step: int) -> Tensor:
    """Stand in for a network."""
    return 0.8 * torch.sin(2.0 * chunk) + 0.3 * torch.cos(chunk + 0.05 * step)


def sample(scheduler: Any, steps: int, name: str) -> dict[str, Tensor]:
    """Sample from noise that is the same for the name; DDPM takes the noise of each step from `torch.randn`."""
    scheduler.set_timesteps(steps)
    chunk = uniform(f"{name}/noise", SHAPE)
    for step in scheduler.timesteps:
        chunk = scheduler.step(network(chunk, int(step)), step, chunk).prev_sample
    return {
        f"{name}/timesteps": scheduler.timesteps,
        f"{name}/alphas_cumprod": scheduler.alphas_cumprod,
        f"{name}/sample": chunk,
    }


def add_noise(scheduler: Any, actions: Tensor, name: str) -> dict[str, Tensor]:
    """Return a noisy chunk, and v."""
    noise = uniform(f"{name}/noise", SHAPE)
    steps = torch.tensor([0, 10, scheduler.config.num_train_timesteps - 1])
    return {
        f"{name}/steps": steps,
        f"{name}/noisy": scheduler.add_noise(actions, noise, steps),
        f"{name}/velocity": scheduler.get_velocity(actions, noise, steps),
    }


def main() -> None:
    config, outputs = {}, {}
    inputs = {f"{name}/action": uniform(f"{name}/action", SHAPE) for name in CASES}
    for name, (scheduler, options, steps) in CASES.items():
        types = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}
        whole = {
            "num_train_timesteps": 100,
            "prediction_type": types[name.split("_")[1]],
            "clip_sample": True,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "clip_sample_range": 1.0,
        } | options
        made = scheduler(**whole)
        drawn: list[Tensor] = []

        def randn(*args: Any, name: str = name, drawn: list[Tensor] = drawn, **kwargs: Any) -> Tensor:
            drawn.append(uniform(f"{name}/{len(drawn)}", SHAPE))
            return drawn[-1]

        original, torch.randn = torch.randn, randn  # type: ignore[assignment]
        try:
            outputs |= sample(made, steps, name)
        finally:
            torch.randn = original
        outputs |= add_noise(made, inputs[f"{name}/action"], name)
        config[name] = {**whole, "steps": steps, "drawn": len(drawn)}
    save("diffusers", config=config, weights={}, inputs=inputs, outputs=outputs)


if __name__ == "__main__":
    main()
