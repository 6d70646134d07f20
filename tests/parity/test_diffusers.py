"""Noise schedules and samplers of the diffusion head agree with diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policysmith.components.base import Feature
from policysmith.components.denoising.noise_schedules import signal_shares
from policysmith.components.heads.diffusion import Diffusion
from policysmith.schemas.specs import Kind, Spec

from .golden import load, uniform

SHAPE = (3, 4, 3)
GOLDEN = load("diffusers")
CASES = sorted(GOLDEN.config)


def make(name: str) -> Diffusion:
    """Build the head of a golden, with the function that stood in for its network there."""
    options = GOLDEN.config[name]
    schedule: dict[str, Any] = {"type": options["beta_schedule"]}
    if schedule["type"] != "squaredcos_cap_v2":
        schedule |= {"start": options["beta_start"], "end": options["beta_end"]}
    config = Diffusion.Config(
        type="diffusion",
        predicts={"v_prediction": "v"}.get(options["prediction_type"], options["prediction_type"]),
        schedule=schedule,
        train_steps=options["num_train_timesteps"],
        sampler=name.split("_")[0],
        steps=options["steps"],
        clip_sample=options["clip_sample_range"] if options["clip_sample"] else None,
    )
    inputs = {"state.pooled": Spec(Kind.POOLED, ("B", 2)), "action": Spec(Kind.ACTION, ("B", *SHAPE[1:]))}
    Diffusion.specs(config, inputs, {})
    part = Diffusion(config, inputs, {})
    part.network = Function()
    return part


class Function(nn.Module):
    """0.8 sin(2 x) + 0.3 cos(x + 0.05 t)."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def encode(self, features: Any) -> dict[str, Tensor]:
        return {"condition": features["state.pooled"].values}

    def forward(self, chunk: Tensor, time: Tensor, context: Any, is_pad: Any = None) -> Tensor:
        self.times.append(time[0].item())
        return 0.8 * torch.sin(2.0 * chunk) + 0.3 * torch.cos(chunk + 0.05 * time[:, None, None])


@pytest.mark.parametrize("name", CASES)
def test_schedules_agree(name: str) -> None:
    config = make(name).config
    ours = signal_shares(config.schedule, config.train_steps)
    torch.testing.assert_close(ours.float(), GOLDEN.outputs[f"{name}/alphas_cumprod"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_samplers_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, count = make(name), GOLDEN.config[name]["drawn"]
    draws = iter([uniform(f"{name}/noise", SHAPE), *(uniform(f"{name}/{i}", SHAPE) for i in range(count))])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(draws))
    sample = part.sample({"state.pooled": Feature(torch.zeros(3, 2))})
    torch.testing.assert_close(sample, GOLDEN.outputs[f"{name}/sample"], rtol=1e-5, atol=1e-5)
    assert part.network.times == GOLDEN.outputs[f"{name}/timesteps"].tolist()
    assert next(draws, None) is None


@pytest.mark.parametrize("name", CASES)
def test_noisy_actions_and_targets_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, outputs = make(name), GOLDEN.outputs
    steps, noise = outputs[f"{name}/steps"], uniform(f"{name}/noise", SHAPE)
    actions, seen = GOLDEN.inputs[f"{name}/action"], SimpleNamespace()

    def network(chunk: Tensor, time: Tensor, context: Any, is_pad: Tensor) -> Tensor:
        seen.chunk, seen.time = chunk, time
        return torch.zeros_like(chunk)

    monkeypatch.setattr(part, "draw", lambda _: (steps, noise))
    monkeypatch.setattr(part.network, "forward", network)
    is_pad = torch.ones(SHAPE, dtype=torch.bool)
    target = torch.zeros(SHAPE)
    for place in torch.ones(SHAPE).nonzero():  # one value at a time, for the loss is a mean
        is_pad[tuple(place)] = False
        alone = torch.where(is_pad, 0.0, actions)
        loss = part.loss({"state.pooled": Feature(torch.zeros(3, 2))}, alone, is_pad)["loss"]
        target[tuple(place)] = loss.sqrt()
        is_pad[tuple(place)] = True
    expected = {"epsilon": noise, "sample": actions, "v": outputs[f"{name}/velocity"]}[part.config.predicts]
    torch.testing.assert_close(target, expected.abs(), rtol=1e-5, atol=1e-5)
    part.loss({"state.pooled": Feature(torch.zeros(3, 2))}, actions, is_pad.logical_not())
    torch.testing.assert_close(seen.chunk, outputs[f"{name}/noisy"], rtol=1e-5, atol=1e-5)
    assert torch.equal(seen.time, steps.float())
