"""Flow matching: the distribution of times, the loss and the integration, against formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.heads.flow_matching import FlowMatching
from policysmith.components.layers import Attention, sinusoids
from policysmith.schemas.errors import SpecError


def make(world: Any, **options: Any) -> FlowMatching:
    config = FlowMatching.Config(type="flow_matching", **{"width": 16, "depth": 2, "heads": 2, **options})
    FlowMatching.specs(config, world.feature_specs, {})
    part = FlowMatching(config, world.feature_specs, {})
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return part


@pytest.mark.parametrize(("alpha", "beta", "scale"), [(1.5, 1.0, 0.999), (2.0, 2.0, 1.0), (0.7, 3.0, 0.5)])
def test_times_follow_the_beta_distribution(world: Any, alpha: float, beta: float, scale: float) -> None:
    part = make(world, alpha=alpha, beta=beta, scale=scale)
    time, noise = part.draw(torch.zeros(20_000, 4, 3))
    expected = stats.beta(alpha, beta)
    assert time.shape == (20_000,)
    assert time.dtype == noise.dtype == torch.float32
    drawn = 1.0 - time.double().numpy() / scale
    assert drawn.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(expected.std(), abs=0.01)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-4
    assert time.min() >= 0.0
    assert time.max() <= scale
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 1.0) < 0.02


def test_default_times_prefer_noise(world: Any) -> None:
    time, _ = make(world).draw(torch.zeros(20_000, 4, 3))
    assert time.mean() == pytest.approx(0.999 * 0.4, abs=0.01)  # t = 0 is noise


def test_loss_is_the_formula(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, batch = make(world), world.batch()
    actions, is_pad = batch["action"], batch["action_is_pad"]
    time, noise = torch.tensor([0.0, 0.25, 0.999]), torch.randn(3, 4, 3)
    seen = {}

    def velocity(
        chunk: Tensor, at: Tensor, context: Tensor, mask: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        seen["chunk"], seen["time"], seen["valid"] = chunk, at, valid
        return chunk.sin() + at[:, None, None]

    monkeypatch.setattr(part, "draw", lambda _: (time, noise))
    monkeypatch.setattr(part, "velocity", velocity)
    loss = part.loss(world.features(), actions, is_pad)["loss"].item()

    a, eps, t = actions.double().numpy(), noise.double().numpy(), time.double().numpy()[:, None, None]
    keep = ~is_pad.numpy()
    x = (1 - t) * eps + t * a
    errors = (np.sin(x) + t - (a - eps)) ** 2
    assert loss == pytest.approx(errors[keep].mean(), rel=1e-5)
    np.testing.assert_allclose(seen["chunk"].numpy()[keep], x[keep], atol=1e-6)
    assert torch.equal(seen["valid"], ~is_pad)
    np.testing.assert_array_equal(seen["chunk"][0].numpy(), eps[0].astype(np.float32))  # t = 0 is pure noise


def test_repeats_keep_samples_together(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, batch = make(world, repeats=3), world.batch()
    time, noise = torch.rand(9), torch.randn(9, 4, 3)
    monkeypatch.setattr(part, "draw", lambda actions: (time[: len(actions)], noise[: len(actions)]))
    loss = part.loss(world.features(), batch["action"], batch["action_is_pad"])["loss"]
    context, mask = part._context(world.features())
    assert mask is not None
    total, count = 0.0, 0
    for sample in range(3):
        for repeat in range(3):
            row = slice(3 * sample + repeat, 3 * sample + repeat + 1)
            one, at, eps = slice(sample, sample + 1), time[row, None, None], noise[row]
            valid = ~batch["action_is_pad"][one]
            action = batch["action"][one].masked_fill(~valid[..., None], 0.0)
            out = part.velocity((1 - at) * eps + at * action, time[row], context[one], mask[one], valid)
            total += ((out - (action - eps)) ** 2)[valid].sum().item()
            count += int(valid.sum()) * 3
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_euler_integrates_a_known_field(world: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    part = make(world, steps=steps)
    features = world.features()
    noise = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(4))

    def sample() -> Tensor:
        return part.sample(features, torch.Generator().manual_seed(4))

    monkeypatch.setattr(part, "velocity", lambda x, t, *_: x)
    torch.testing.assert_close(sample(), noise * (1 + 1 / steps) ** steps)
    monkeypatch.setattr(part, "velocity", lambda x, t, *_: t[:, None, None].expand_as(x))
    torch.testing.assert_close(sample(), noise + (steps - 1) / (2 * steps))
    target = torch.randn(3, 4, 3)
    monkeypatch.setattr(part, "velocity", lambda x, t, *_: (target - x) / (1 - t[:, None, None]))
    torch.testing.assert_close(sample(), target)


def test_generators_decide_the_sample(world: Any) -> None:
    part, features = make(world).eval(), world.features()
    one, two = (part.sample(features, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.allclose(one, two)
    assert not part.sample(features).requires_grad


def test_bfloat16_keeps_time_and_noise_in_float32(world: Any) -> None:
    part = make(world, steps=7).to(torch.bfloat16)
    features = world.features(dtype=torch.bfloat16)
    seen = []
    velocity = part.velocity

    def spy(chunk: Tensor, time: Tensor, *rest: Any) -> Tensor:
        seen.append((chunk.dtype, time.dtype, time[0].item()))
        return velocity(chunk, time, *rest)

    part.velocity = spy  # type: ignore[method-assign]
    assert part.sample(features).dtype == torch.float32
    assert [at for *_, at in seen] == pytest.approx([step / 7 for step in range(7)])
    batch = world.batch()
    assert part.loss(features, batch["action"], batch["action_is_pad"])["loss"].dtype == torch.float32
    assert {kind for *kinds, _ in seen for kind in kinds} == {torch.float32}


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context"])
def test_conditioning_and_masks(world: Any, conditioning: str) -> None:
    part, features, batch = make(world, conditioning=conditioning), world.features(), world.batch()
    tokens, is_pad = features["vision.tokens"], batch["action_is_pad"]
    generator = torch.Generator()

    def run(values: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        changed = {**features, "vision.tokens": Feature(values, tokens.mask)}
        return part.loss(changed, actions, is_pad)["loss"], part.sample(changed, generator.manual_seed(0))

    first = run(tokens.values, batch["action"])
    hidden = run(torch.where(tokens.mask[..., None], tokens.values, 9.0), batch["action"])
    padded = run(tokens.values, torch.where(is_pad[..., None], 9.0, batch["action"]))
    shown = run(torch.where(tokens.mask[..., None], -tokens.values, 9.0), batch["action"])
    for loss, sample in (hidden, padded):
        assert torch.equal(loss, first[0])
        assert torch.equal(sample, first[1])
    assert not torch.allclose(shown[1], first[1])


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context"])
def test_no_mask_is_a_mask_of_ones(world: Any, conditioning: str) -> None:
    part, features = make(world, conditioning=conditioning), world.features()
    values = features["vision.tokens"].values
    masks = (None, torch.ones(values.shape[:2], dtype=torch.bool))
    samples = [
        part.sample({**features, "vision.tokens": Feature(values, mask)}, torch.Generator().manual_seed(0))
        for mask in masks
    ]
    torch.testing.assert_close(*samples)


def test_it_starts_as_a_still_field(world: Any) -> None:
    """AdaLN-zero: before training every layer is the identity and the velocity is zero."""
    config = FlowMatching.Config(type="flow_matching", width=16, depth=2, heads=2)
    part = FlowMatching(config, world.feature_specs, {})
    noise = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part.sample(world.features(), torch.Generator().manual_seed(0)), noise)


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (15, 5)])
def test_heads_must_share_the_width(world: Any, width: int, heads: int) -> None:
    with pytest.raises(SpecError, match=f"width of {width} cannot be shared by {heads} heads") as caught:
        make(world, width=width, heads=heads)
    assert caught.value.field == "width"


def test_attention_agrees_with_its_formula() -> None:
    part = Attention(8, 2).double()
    queries, context = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    key, value = part.key_value(context).chunk(2, dim=-1)
    query = part.query(queries)
    expected = torch.zeros(2, 3, 8).double()
    for b in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            scores = query[b, :, head] @ key[b, :, head].T / math.sqrt(4)
            weights = scores.masked_fill(~mask[b], -torch.inf).softmax(-1)
            expected[b, :, head] = weights @ value[b, :, head]
    torch.testing.assert_close(part(queries, context, mask), part.out(expected))


def test_sinusoids_are_the_formula() -> None:
    times = torch.tensor([0.0, 0.3, 1.0])
    ours = sinusoids(times, 8).double().numpy()
    for row, time in enumerate([0.0, 0.3, 1.0]):
        angles = [1000 * time * 10_000 ** (-k / 4) for k in range(4)]
        np.testing.assert_allclose(ours[row], [*map(math.sin, angles), *map(math.cos, angles)], atol=1e-4)
