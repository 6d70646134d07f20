"""Real-time chunking, against the formulas of Black et al. (2025) written out, by guidance and by training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.denoising.noise_schedules import signal_shares
from policysmith.components.heads.diffusion import Diffusion
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.real_time import Prefix, guided_slope, soft_mask
from policysmith.schemas.errors import SpecError

DIT = {"type": "dit", "width": 16, "depth": 2, "heads": 2}


def trained(world: Any, most: int = 3, **options: Any) -> FlowMatching:
    made = {"type": "flow_matching", "network": DIT, "delay": {"max": most}, **options}
    config = FlowMatching.Config.model_validate(made)
    FlowMatching.specs(config, world.feature_specs, {})
    return FlowMatching(config, world.feature_specs, {})


@pytest.mark.parametrize(
    ("horizon", "delay", "execute"), [(8, 2, 3), (8, 0, 4), (16, 4, 4), (5, 5, 0), (6, 1, 5)]
)
def test_the_mask_is_that_of_the_paper(horizon: int, delay: int, execute: int) -> None:
    expected = []
    for i in range(horizon):
        if i < delay:
            expected.append(1.0)
        elif i < horizon - execute:
            c = (horizon - execute - i) / (horizon - execute - delay + 1)
            expected.append(c * (math.exp(c) - 1.0) / (math.e - 1.0))
        else:
            expected.append(0.0)
    assert soft_mask(horizon, delay, horizon - execute).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("level", [1.0, 0.9, 0.5, 0.1])
def test_guidance_pulls_along_the_jacobian(level: float) -> None:
    """For a velocity that is linear in the chunk, the Jacobian is known."""
    random = torch.Generator().manual_seed(0)
    batch, horizon, dim = 2, 3, 2
    size = horizon * dim
    matrix = torch.randn(size, size, generator=random).double()
    chunk = torch.randn(batch, horizon, dim, generator=random).double()
    goal = torch.randn(batch, horizon, dim, generator=random).double()
    weights = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 0.2]]).double()

    def slope_at(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    found = guided_slope(slope_at, chunk, level, Prefix(goal, weights, 5.0))
    time = 1.0 - level
    beta = 5.0 if time == 0.0 else min(5.0, level / (time * (level**2 / (time**2 + level**2))))
    jacobian = torch.eye(size).double() - level * matrix
    for row in range(batch):
        action = jacobian @ chunk[row].flatten()
        error = (goal[row].flatten() - action) * weights[row].repeat_interleave(dim)
        expected = matrix @ chunk[row].flatten() - beta * (jacobian.T @ error)
        torch.testing.assert_close(found[row].flatten(), expected)


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("step", [5, 50, 95])
def test_a_guided_diffusion_is_the_guided_flow_of_the_same_chunk(
    step: int, predicts: str, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk c a + n eps is that of a flow at the noise level n / (c + n), scaled by c + n."""
    config = Diffusion.Config(type="diffusion", network=DIT, predicts=predicts, clip_sample=None)
    part, random = Diffusion(config, world.feature_specs, {}), torch.Generator().manual_seed(step)
    matrix, chunk, goal = (
        torch.randn(size, generator=random).double() for size in [(3, 3), (2, 4, 3), (2, 4, 3)]
    )
    prefix = Prefix(goal, torch.rand(2, 4, generator=random).double())
    monkeypatch.setattr(part.network, "forward", lambda x, time, context: (x @ matrix).tanh())
    left = float(signal_shares(config.schedule, 100)[step])
    action, noise = part._guided_split(chunk, step, left, {}, {}, prefix)

    signal, spread = left**0.5, (1.0 - left) ** 0.5
    level = spread / (signal + spread)

    def slope_at(x: Tensor) -> Tensor:
        found = part._split(x * (signal + spread), step, left, {}, {})
        return found[1] - found[0]

    x = chunk / (signal + spread)
    slope = guided_slope(slope_at, x, level, prefix)
    torch.testing.assert_close(action, x - level * slope)
    torch.testing.assert_close(noise, x + (1.0 - level) * slope)


def test_guided_actions_stay_within_the_bound(world: Any) -> None:
    config = Diffusion.Config(type="diffusion", network=DIT, clip_sample=1.0, train_steps=20)
    part = Diffusion(config, {**world.feature_specs}, {})
    prefix = Prefix(torch.full((3, 4, 3), 9.0), torch.ones(3, 4))
    chunk = part.inpaint(world.features(), prefix, torch.Generator().manual_seed(0))
    assert chunk.isfinite().all()
    assert chunk.abs().max() <= 1.0 + 1e-5


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("predicts", ["velocity", "action"])
def test_the_loss_is_that_of_the_paper_on_the_postfix(
    noise_at: int, predicts: str, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The algorithm as published, in float64: time 1 and the clean action in the prefix, which does not count."""
    part, batch = trained(world, noise_at=noise_at, predicts=predicts), world.batch()
    time, noise, delays = torch.tensor([0.1, 0.5, 0.9]), torch.randn(3, 4, 3), torch.tensor([0, 1, 3])
    is_pad, seen = world.is_pad(batch), {}

    def network(chunk: Tensor, at: Tensor, context: Any, hidden: Tensor) -> Tensor:
        seen.update(chunk=chunk, time=at, hidden=hidden)
        return chunk.sin() + at[..., None]

    monkeypatch.setattr(part, "draw", lambda _: (1.0 - time, noise))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: delays[:, None])
    monkeypatch.setattr(part.network, "forward", network)
    loss = part.loss(world.features(), batch["action"], is_pad)["loss"].item()

    a, eps = batch["action"].double().numpy(), noise.double().numpy()
    prefix = np.arange(4)[None] < delays.numpy()[:, None]
    tau = np.where(prefix, 1.0, time.double().numpy()[:, None])  # 1 for the action, as in the paper
    x = tau[..., None] * a + (1.0 - tau[..., None]) * eps
    told = tau if noise_at == 0 else 1.0 - tau
    velocity = a - eps if noise_at == 0 else eps - a
    errors = (np.sin(x) + told[..., None] - (velocity if predicts == "velocity" else a)) ** 2
    counts = ~prefix[..., None] & ~is_pad.numpy()
    assert loss == pytest.approx((errors * counts).sum() / counts.sum(), rel=1e-5)
    np.testing.assert_allclose(seen["time"].numpy(), told, atol=1e-6)
    shown = ~is_pad.numpy()
    np.testing.assert_allclose(seen["chunk"].numpy()[shown], x[shown], atol=1e-6)
    assert torch.equal(seen["hidden"], batch["action_is_pad"])


@pytest.mark.parametrize("noise_at", [0, 1])
def test_sampling_is_that_of_the_paper(noise_at: int, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every step the prefix is put in place, with time 1; at most `delay.max` steps of it."""
    part = trained(world, most=2, noise_at=noise_at, steps=5)
    prefix, delays = torch.randn(3, 4, 3), torch.tensor([0, 1, 3])
    sign = 1.0 if noise_at == 0 else -1.0

    def network(chunk: Tensor, time: Tensor, context: Any) -> Tensor:
        return sign * (chunk.roll(1, 1).cos() + time[..., None] ** 2)

    monkeypatch.setattr(part.network, "forward", network)
    weights = (torch.arange(4) < delays[:, None]).float() + 0.3 * (torch.arange(4) == delays[:, None])
    found = part.inpaint(world.features(), Prefix(prefix, weights), torch.Generator().manual_seed(2))

    x = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(2)).double().numpy()
    given = (np.arange(4)[None] < np.minimum(delays.numpy(), 2)[:, None])[..., None]
    for step in range(5):
        x = np.where(given, prefix.double().numpy(), x)
        tau = np.where(given, 1.0, step / 5)
        told = tau if noise_at == 0 else 1.0 - tau
        x = x + (np.cos(np.roll(x, 1, 1)) + told**2) / 5
    np.testing.assert_allclose(found.numpy(), np.where(given, prefix.double().numpy(), x), atol=1e-5)


def test_every_delay_is_drawn_as_often(world: Any) -> None:
    given = trained(world, most=3).draw_prefix(torch.zeros(40_000, 4, 3))
    lengths = given.sum(1)
    assert torch.equal(given, torch.arange(4) < lengths[:, None])
    np.testing.assert_allclose(torch.bincount(lengths) / 40_000, [0.25] * 4, atol=0.01)


def test_a_trained_head_continues_what_it_is_given(world: Any) -> None:
    """Of two ways to act, which nothing observed tells apart, the rest of a chunk follows its first step."""
    torch.manual_seed(0)
    part = trained(world, most=2, predicts="action", levels={"type": "uniform"}, steps=8)
    features = {key: Feature(torch.zeros_like(f.values), None) for key, f in world.features(64).items()}
    way = (torch.arange(64) % 2 * 2.0 - 1.0)[:, None, None].expand(64, 4, 3)
    optimizer = torch.optim.Adam(part.parameters(), lr=5e-3)
    for _ in range(150):
        loss = part.loss(features, way, torch.zeros(64, 4, 3, dtype=torch.bool))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = torch.zeros(64, 4)
    free = part.inpaint(features, Prefix(way, weights), torch.Generator().manual_seed(1))
    weights[:, 0] = 1.0
    held = part.inpaint(features, Prefix(way, weights), torch.Generator().manual_seed(1))
    assert torch.equal(held[:, 0], way[:, 0])
    assert (held[:, 1:].sign() == way[:, 1:]).float().mean() > 0.97
    assert (free[:, 1:].sign() == way[:, 1:]).float().mean() < 0.75


@pytest.mark.parametrize(
    ("options", "field"),
    [({"most": 4}, "delay.max"), ({"network": {"type": "unet", "widths": [16]}}, "delay")],
)
def test_a_delay_that_cannot_be_trained_is_refused(options: dict[str, Any], field: str, world: Any) -> None:
    pooled = {key: spec for key, spec in world.feature_specs.items() if key != "vision.tokens"}
    with pytest.raises(SpecError) as caught:
        trained(type("World", (), {"feature_specs": pooled}), **options)
    assert caught.value.field == field
