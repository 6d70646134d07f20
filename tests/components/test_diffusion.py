"""Diffusion: schedules, the loss and the samplers, against formulas; diffusers itself is met in tests/parity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.denoising.noise_schedules import signal_shares
from policysmith.components.heads.diffusion import Diffusion
from policysmith.schemas.errors import SpecError

DIT = {"type": "dit", "width": 16, "depth": 2, "heads": 2}


def make(world: Any, network: dict[str, Any] | None = None, **options: Any) -> Diffusion:
    config = Diffusion.Config(type="diffusion", network=network or DIT, **options)
    Diffusion.specs(config, world.feature_specs, {})
    part = Diffusion(config, world.feature_specs, {})
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return part


def left(part: Diffusion) -> np.ndarray[Any, Any]:
    return signal_shares(part.config.schedule, part.config.train_steps).numpy()


def test_cosine_schedule_is_the_published_curve(world: Any) -> None:
    """a_t = f((t + 1) / N) / f(0) as long as no step reaches the cap, which the last does."""
    shares = left(make(world))

    def curve(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [curve((t + 1) / 100) / curve(0.0) for t in range(99)]
    np.testing.assert_allclose(shares[:99], expected, rtol=1e-12)
    assert shares[99] == pytest.approx(shares[98] * 0.001)


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v"])
def test_loss_is_the_formula(world: Any, monkeypatch: pytest.MonkeyPatch, predicts: str) -> None:
    part, batch = make(world, predicts=predicts), world.batch()
    actions, is_pad = batch["action"], world.is_pad(batch)
    step, noise = torch.tensor([0, 40, 99]), torch.randn(3, 4, 3)
    seen = {}

    def network(chunk: Tensor, at: Tensor, context: Any, steps: Tensor) -> Tensor:
        seen["chunk"], seen["time"], seen["steps"] = chunk, at, steps
        return chunk.sin() + at[:, None, None] / 100

    monkeypatch.setattr(part, "draw", lambda _: (step, noise))
    monkeypatch.setattr(part.network, "forward", network)
    loss = part.loss(world.features(), actions, is_pad)["loss"].item()

    a, eps, share = actions.double().numpy(), noise.double().numpy(), left(part)[step.numpy()][:, None, None]
    keep = ~is_pad.numpy()
    x = np.sqrt(share) * a + np.sqrt(1 - share) * eps
    target = {"epsilon": eps, "sample": a, "v": np.sqrt(share) * eps - np.sqrt(1 - share) * a}[predicts]
    errors = (np.sin(x) + step.numpy()[:, None, None] / 100 - target) ** 2
    assert loss == pytest.approx(errors[keep].mean(), rel=1e-5)
    np.testing.assert_allclose(seen["chunk"].numpy()[keep], x[keep], atol=1e-5)
    assert torch.equal(seen["time"], step.float())
    assert torch.equal(seen["steps"], batch["action_is_pad"])


def test_steps_are_drawn_alike(world: Any) -> None:
    step, noise = make(world, train_steps=7).draw(torch.zeros(7000, 4, 3))
    assert step.bincount(minlength=7).sub(1000).abs().max() < 150
    assert noise.dtype == torch.float32
    assert abs(noise.std() - 1.0) < 0.02


def test_repeats_keep_samples_together(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, batch = make(world, repeats=3), world.batch()
    step, noise, is_pad = torch.randint(100, (9,)), torch.randn(9, 4, 3), world.is_pad(batch)
    monkeypatch.setattr(part, "draw", lambda actions: (step[: len(actions)], noise[: len(actions)]))
    loss = part.loss(world.features(), batch["action"], is_pad)["loss"]
    context, shares = part.network.encode(world.features()), torch.from_numpy(left(part)).float()
    total, count = 0.0, 0
    for row in range(9):
        one, share = slice(row // 3, row // 3 + 1), shares[step[row]]
        action = batch["action"][one].masked_fill(is_pad[one], 0.0)
        noisy = share.sqrt() * action + (1 - share).sqrt() * noise[row]
        shown = {key: value[one] for key, value in context.items()}
        out = part.network(noisy, step[row, None].float(), shown, batch["action_is_pad"][one])
        total += ((out - noise[row]) ** 2)[~is_pad[one]].sum().item()
        count += int((~is_pad[one]).sum())
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v"])
def test_gaussian_data_are_reproduced(
    world: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, predicts: str
) -> None:
    """For actions N(m, s^2) the best prediction is known, and so is what the sampler makes of it."""
    mean, deviation = 0.7, 0.4
    part = make(world, sampler=sampler, predicts=predicts, train_steps=400, clip_sample=None)
    shares = torch.from_numpy(left(part))

    def best(x: Tensor, time: Tensor, context: Any) -> Tensor:
        share = shares[time[0].long()].item()
        noise = math.sqrt(1 - share) * (x - math.sqrt(share) * mean) / (share * deviation**2 + 1 - share)
        action = mean + math.sqrt(share) * deviation**2 / (share * deviation**2 + 1 - share) * (
            x - math.sqrt(share) * mean
        )
        v = math.sqrt(share) * noise - math.sqrt(1 - share) * action
        return {"epsilon": noise, "sample": action, "v": v}[predicts]

    monkeypatch.setattr(part.network, "forward", best)
    found = part.sample(world.features(4000), torch.Generator().manual_seed(0)).double()
    assert found.mean().item() == pytest.approx(mean, abs=0.01)
    assert found.std().item() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_predicted_actions_are_reached_and_clipped(
    world: Any, monkeypatch: pytest.MonkeyPatch, sampler: str, steps: int
) -> None:
    target = torch.randn(3, 4, 3)
    for clip in (None, 0.5):
        part = make(world, sampler=sampler, predicts="sample", steps=steps, clip_sample=clip)
        monkeypatch.setattr(part.network, "forward", lambda x, time, context: target)
        expected = target if clip is None else target.clamp(-clip, clip)
        atol = 1e-2 if sampler == "ddim" and clip else 1e-5  # ddim keeps the noise of the unclipped action
        torch.testing.assert_close(part.sample(world.features()), expected, atol=atol, rtol=1e-5)


def test_generators_decide_every_draw(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, features = make(world, steps=5).eval(), world.features()
    one, two = (part.sample(features, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.allclose(one, two)
    torch.manual_seed(99)
    assert torch.equal(one, part.sample(features, torch.Generator().manual_seed(1)))
    assert not part.sample(features).requires_grad


def test_the_network_sees_zeros_in_dimensions_that_a_robot_lacks(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, seen = make(world, steps=2), []
    lacks = torch.tensor([[False, False, False], [False, True, True], [False, False, True]])
    features = {**world.features(), "action_dim_is_pad": Feature(lacks)}

    def network(chunk: Tensor, *rest: Any) -> Tensor:
        seen.append(chunk)
        return torch.ones_like(chunk)

    monkeypatch.setattr(part.network, "forward", network)
    part.sample(features)
    part.loss(features, world.batch()["action"], lacks[:, None].expand(3, 4, 3))
    assert len(seen) == 3
    for chunk in seen:
        assert torch.equal(chunk == 0.0, lacks[:, None].expand(3, 4, 3))


def test_bfloat16_keeps_steps_and_noise_in_float32(world: Any) -> None:
    part = make(world, steps=4).to(torch.bfloat16)
    features, seen = world.features(dtype=torch.bfloat16), []
    forward = part.network.forward

    def spy(chunk: Tensor, time: Tensor, *rest: Any) -> Tensor:
        seen.append((chunk.dtype, time.dtype, time[0].item()))
        return forward(chunk, time, *rest)

    part.network.forward = spy  # type: ignore[method-assign]
    assert part.sample(features).dtype == torch.float32
    assert [at for *_, at in seen] == [75.0, 50.0, 25.0, 0.0]
    batch = world.batch()
    assert part.loss(features, batch["action"], world.is_pad(batch))["loss"].dtype == torch.float32
    assert {kind for *kinds, _ in seen for kind in kinds} == {torch.float32}


def test_no_more_steps_are_sampled_than_are_trained(world: Any) -> None:
    with pytest.raises(SpecError, match="101 steps are sampled, but only 100 are trained") as caught:
        make(world, steps=101)
    assert caught.value.field == "steps"


@pytest.mark.parametrize(("bounds", "reach"), [((-1.0, 1.0), 1.0), ((-2.5, 1.5), 2.5), (None, 9.0)])
def test_by_default_actions_are_clipped_where_those_of_the_data_end(
    world: Any, bounds: tuple[float, float] | None, reach: float
) -> None:
    inputs = {**world.feature_specs, "action": replace(world.feature_specs["action"], bounds=bounds)}
    config = Diffusion.Config(type="diffusion", predicts="sample", train_steps=4, sampler="ddim")
    part = Diffusion(config, inputs, {})
    found = torch.full((1, *inputs["action"].dims[1:]), 9.0)
    part.network.forward = lambda *_: found  # type: ignore[method-assign,assignment]
    action, _ = part._split(torch.zeros_like(found), 1, 0.5, {}, {})
    assert action.unique().tolist() == [reach]


def test_a_bound_below_the_data_is_refused(world: Any) -> None:
    inputs = {**world.feature_specs, "action": replace(world.feature_specs["action"], bounds=(-3.0, 2.0))}
    for bound, fits in ((2.9, False), (3.0, True), (None, True)):
        config = Diffusion.Config(type="diffusion", clip_sample=bound)
        if fits:
            Diffusion.specs(config, inputs, {})
            continue
        with pytest.raises(SpecError, match="reach from -3 to 2") as raised:
            Diffusion.specs(config, inputs, {})
        assert (raised.value.field, raised.value.trait) == ("clip_sample", "range")
