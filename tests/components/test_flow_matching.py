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
from policysmith.components.layers.basic import Attention, sinusoids
from policysmith.schemas.errors import SpecError

DIT = {"type": "dit", "width": 16, "depth": 2, "heads": 2}


def make(world: Any, network: dict[str, Any] | None = None, **options: Any) -> FlowMatching:
    config = FlowMatching.Config(type="flow_matching", network={**DIT, **(network or {})}, **options)
    FlowMatching.specs(config, world.feature_specs, {})
    part = FlowMatching(config, world.feature_specs, {})
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return part


@pytest.mark.parametrize(("alpha", "beta", "floor"), [(1.5, 1.0, 0.001), (2.0, 2.0, 0.0), (0.7, 3.0, 0.5)])
def test_levels_follow_the_beta_distribution(world: Any, alpha: float, beta: float, floor: float) -> None:
    part = make(world, levels={"type": "beta", "alpha": alpha, "beta": beta, "floor": floor})
    level, noise = part.draw(torch.zeros(20_000, 4, 3))
    expected = stats.beta(alpha, beta)
    assert level.shape == (20_000,)
    assert level.dtype == noise.dtype == torch.float32
    drawn = (level.double().numpy() - floor) / (1.0 - floor)
    assert drawn.mean() == pytest.approx(expected.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(expected.std(), abs=0.01)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-4
    assert level.min() >= floor
    assert level.max() <= 1.0
    assert noise.mean().abs() < 0.02
    assert abs(noise.std() - 1.0) < 0.02


def test_default_levels_prefer_noise(world: Any) -> None:
    level, _ = make(world).draw(torch.zeros(20_000, 4, 3))
    assert level.mean() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize("predicts", ["velocity", "action"])
def test_loss_is_the_formula(
    world: Any, monkeypatch: pytest.MonkeyPatch, noise_at: int, predicts: str
) -> None:
    part, batch = make(world, noise_at=noise_at, predicts=predicts), world.batch()
    actions, is_pad = batch["action"], world.is_pad(batch)
    time, noise = torch.tensor([0.0, 0.25, 0.999]), torch.randn(3, 4, 3)
    level = time if noise_at == 1 else 1.0 - time
    seen = {}

    def network(chunk: Tensor, at: Tensor, context: Any, steps: Tensor) -> Tensor:
        seen["chunk"], seen["time"], seen["steps"] = chunk, at, steps
        return chunk.sin() + at[:, None, None]

    monkeypatch.setattr(part, "draw", lambda _: (level, noise))
    monkeypatch.setattr(part.network, "forward", network)
    loss = part.loss(world.features(), actions, is_pad)["loss"].item()

    a, eps, t = actions.double().numpy(), noise.double().numpy(), time.double().numpy()[:, None, None]
    keep = ~is_pad.numpy()
    x = (1 - t) * eps + t * a if noise_at == 0 else t * eps + (1 - t) * a
    velocity = a - eps if noise_at == 0 else eps - a
    errors = (np.sin(x) + t - (velocity if predicts == "velocity" else a)) ** 2
    assert loss == pytest.approx(errors[keep].mean(), rel=1e-5)
    np.testing.assert_allclose(seen["chunk"].numpy()[keep], x[keep], atol=1e-6)
    np.testing.assert_allclose(seen["time"].numpy(), time.numpy(), atol=1e-6)
    assert torch.equal(seen["steps"], batch["action_is_pad"])


@pytest.mark.parametrize("padded_dims", ["zero", "noise"])
def test_padded_dimensions_are_shown_as_asked(
    world: Any, monkeypatch: pytest.MonkeyPatch, padded_dims: str
) -> None:
    """In training and in sampling; whatever is shown, they do not count."""
    part, batch = make(world, padded_dims=padded_dims, noise_at=1, steps=2), world.batch()
    absent = torch.zeros(3, 3, dtype=torch.bool)
    absent[1, 2], absent[2, 1:] = True, True
    features = {**world.features(), "action_dim_is_pad": Feature(absent)}
    is_pad = absent[:, None].expand(3, 4, 3)
    level, noise, seen = torch.tensor([1.0, 0.5, 0.2]), torch.randn(3, 4, 3), []

    def network(chunk: Tensor, *_: Any) -> Tensor:
        seen.append(chunk)
        return torch.zeros_like(chunk)

    monkeypatch.setattr(part, "draw", lambda _: (level, noise))
    monkeypatch.setattr(part.network, "forward", network)
    loss = part.loss(features, batch["action"], is_pad)["loss"]
    torch.testing.assert_close(loss, ((noise - batch["action"])[~is_pad] ** 2).mean())
    start = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    part.sample(features, torch.Generator().manual_seed(0))
    for chunk, whole in zip(seen, (level[:, None, None] * noise, start, start), strict=True):
        expected = whole if padded_dims == "noise" else torch.zeros(())
        torch.testing.assert_close(chunk[is_pad], expected.expand_as(whole)[is_pad])
        assert chunk[~is_pad].abs().min() > 0.0


def test_repeats_keep_samples_together(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, batch = make(world, repeats=3), world.batch()
    level, noise, is_pad = torch.rand(9), torch.randn(9, 4, 3), world.is_pad(batch)
    monkeypatch.setattr(part, "draw", lambda actions: (level[: len(actions)], noise[: len(actions)]))
    loss = part.loss(world.features(), batch["action"], is_pad)["loss"]
    context = part.network.encode(world.features())
    assert "mask" in context
    total, count = 0.0, 0
    for sample in range(3):
        for repeat in range(3):
            row = slice(3 * sample + repeat, 3 * sample + repeat + 1)
            one, at, eps = slice(sample, sample + 1), level[row, None, None], noise[row]
            action = batch["action"][one].masked_fill(is_pad[one], 0.0)
            shown = {key: value[one] for key, value in context.items()}
            steps = batch["action_is_pad"][one]
            out = part.network(at * eps + (1 - at) * action, 1.0 - level[row], shown, steps)
            total += ((out - (action - eps)) ** 2)[~is_pad[one]].sum().item()
            count += int((~is_pad[one]).sum())
    assert loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("noise_at", [0, 1])
def test_euler_integrates_a_known_field(
    world: Any, steps: int, noise_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dx/ds = f(x, s) from s = 1 to 0, told to the head as the derivative by its own time."""
    part = make(world, steps=steps, noise_at=noise_at)
    noise = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(4))
    sign = 1.0 if noise_at == 1 else -1.0

    def sample(field: Any) -> Tensor:
        def network(x: Tensor, time: Tensor, context: Any) -> Tensor:
            level = time if noise_at == 1 else 1.0 - time
            return sign * field(x, level[:, None, None]).expand_as(x)  # type: ignore[no-any-return]

        monkeypatch.setattr(part.network, "forward", network)
        return part.sample(world.features(), torch.Generator().manual_seed(4))

    torch.testing.assert_close(sample(lambda x, s: x), noise * (1 - 1 / steps) ** steps)
    torch.testing.assert_close(sample(lambda x, s: s), noise - (steps + 1) / (2 * steps))
    target = torch.randn(3, 4, 3)
    torch.testing.assert_close(sample(lambda x, s: (x - target) / s), target)


def test_heun_is_of_second_order(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For dx/ds = x the chunk is noise / e at the end; twice the steps leave a quarter of the error."""
    exact = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(4)) / math.e
    errors = {}
    for sampler, steps in ((s, n) for s in ("euler", "heun") for n in (20, 40)):
        part = make(world, steps=steps, noise_at=1, sampler=sampler)
        monkeypatch.setattr(part.network, "forward", lambda x, time, context: x)
        found = part.sample(world.features(), torch.Generator().manual_seed(4))
        errors[sampler, steps] = (found - exact).abs().max().item()
    assert errors["euler", 20] / errors["euler", 40] == pytest.approx(2.0, rel=0.1)
    assert errors["heun", 20] < errors["euler", 20] / 5
    assert errors["heun", 20] / errors["heun", 40] > 2.5  # the last step is Euler's


def test_predicted_actions_are_reached(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part, target = make(world, predicts="action", steps=3), torch.randn(3, 4, 3)
    monkeypatch.setattr(part.network, "forward", lambda x, time, context: target)
    torch.testing.assert_close(part.sample(world.features()), target)


def test_generators_decide_the_sample(world: Any) -> None:
    part, features = make(world).eval(), world.features()
    one, two = (part.sample(features, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.allclose(one, two)
    assert not part.sample(features).requires_grad


def test_bfloat16_keeps_time_and_noise_in_float32(world: Any) -> None:
    part = make(world, steps=7).to(torch.bfloat16)
    features = world.features(dtype=torch.bfloat16)
    seen = []
    forward = part.network.forward

    def spy(chunk: Tensor, time: Tensor, *rest: Any) -> Tensor:
        seen.append((chunk.dtype, time.dtype, time[0].item()))
        return forward(chunk, time, *rest)

    part.network.forward = spy  # type: ignore[method-assign]
    assert part.sample(features).dtype == torch.float32
    assert [at for *_, at in seen] == pytest.approx([step / 7 for step in range(7)])
    batch = world.batch()
    assert part.loss(features, batch["action"], world.is_pad(batch))["loss"].dtype == torch.float32
    assert {kind for *kinds, _ in seen for kind in kinds} == {torch.float32}


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context"])
def test_conditioning_and_masks(world: Any, conditioning: str) -> None:
    part, features, batch = make(world, {"conditioning": conditioning}), world.features(), world.batch()
    tokens, is_pad = features["vision.tokens"], world.is_pad(batch)
    generator = torch.Generator()

    def run(values: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        changed = {**features, "vision.tokens": Feature(values, tokens.mask)}
        return part.loss(changed, actions, is_pad)["loss"], part.sample(changed, generator.manual_seed(0))

    first = run(tokens.values, batch["action"])
    hidden = run(torch.where(tokens.mask[..., None], tokens.values, 9.0), batch["action"])
    padded = run(tokens.values, torch.where(is_pad, 9.0, batch["action"]))
    shown = run(torch.where(tokens.mask[..., None], -tokens.values, 9.0), batch["action"])
    for loss, sample in (hidden, padded):
        assert torch.equal(loss, first[0])
        assert torch.equal(sample, first[1])
    assert not torch.allclose(shown[1], first[1])


@pytest.mark.parametrize("conditioning", ["cross_attention", "in_context"])
def test_no_mask_is_a_mask_of_ones(world: Any, conditioning: str) -> None:
    part, features = make(world, {"conditioning": conditioning}), world.features()
    values = features["vision.tokens"].values
    masks = (None, torch.ones(values.shape[:2], dtype=torch.bool))
    samples = [
        part.sample({**features, "vision.tokens": Feature(values, mask)}, torch.Generator().manual_seed(0))
        for mask in masks
    ]
    torch.testing.assert_close(*samples)


def test_it_starts_as_a_still_field(world: Any) -> None:
    """AdaLN-zero: before training every layer is the identity and the velocity is zero."""
    config = FlowMatching.Config(type="flow_matching", network=DIT)
    part = FlowMatching(config, world.feature_specs, {})
    noise = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part.sample(world.features(), torch.Generator().manual_seed(0)), noise)


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (15, 5)])
def test_heads_must_share_the_width(world: Any, width: int, heads: int) -> None:
    with pytest.raises(SpecError, match=f"width of {width} cannot be shared by {heads} heads") as caught:
        make(world, {"width": width, "heads": heads})
    assert caught.value.field == "network.width"


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
