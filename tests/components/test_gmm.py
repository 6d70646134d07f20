"""The mixture of Gaussians, against torch.distributions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from policysmith.components.base import Feature
from policysmith.components.heads.gmm import Gmm
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

BATCH, HORIZON, ACTION, MODES = 4, 3, 2, 3
INPUTS = {"state.pooled": Spec(Kind.POOLED, ("B", 5)), "action": Spec(Kind.ACTION, ("B", HORIZON, ACTION))}


def head(**options: Any) -> Gmm:
    return Gmm(Gmm.Config(type="gmm", modes=MODES, hidden=[16], **options), INPUTS, {})


def features(size: int = BATCH) -> dict[str, Feature]:
    return {"state.pooled": Feature(torch.randn(size, 5, generator=torch.Generator().manual_seed(3)))}


def likelihoods(part: Gmm, actions: Tensor) -> Tensor:
    """Log-likelihoods of actions of which every value counts, by torch.distributions in float64: (B, H) or (B,)."""
    weights, means, deviations = (value.double() for value in part.predict(features()))
    if part.config.mixture == "chunk":
        parts = Independent(Normal(means, deviations), 2)
        return MixtureSameFamily(Categorical(logits=weights[..., 0]), parts).log_prob(actions.double())
    by_step = Independent(Normal(means.transpose(1, 2), deviations.transpose(1, 2)), 1)
    mixture = MixtureSameFamily(Categorical(logits=weights.transpose(1, 2)), by_step)
    return mixture.log_prob(actions.double())


@pytest.mark.parametrize("mixture", ["step", "chunk"])
@pytest.mark.parametrize("means", ["free", "tanh"])
def test_loss_is_the_negative_log_likelihood(mixture: str, means: str) -> None:
    part = head(mixture=mixture, means=means)
    actions = torch.randn(BATCH, HORIZON, ACTION)
    is_pad = torch.zeros_like(actions, dtype=torch.bool)
    expected = -likelihoods(part, actions).mean()
    assert part.loss(features(), actions, is_pad)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_padded_steps_and_dimensions_are_left_out() -> None:
    part = head()
    actions = torch.randn(BATCH, HORIZON, ACTION)
    is_pad = torch.zeros_like(actions, dtype=torch.bool)
    is_pad[0, 1:] = True
    is_pad[1, :, 1] = True
    weights, means, deviations = (value.double() for value in part.predict(features()))
    total, count = 0.0, 0
    for sample in range(BATCH):
        for step in range(HORIZON):
            valid = ~is_pad[sample, step]
            if not valid.any():
                continue
            each = Normal(means[sample, :, step, valid], deviations[sample, :, step, valid])
            logs = each.log_prob(actions[sample, step, valid].double()).sum(-1)
            total -= torch.logsumexp(weights[sample, :, step] + logs, 0).item()
            count += 1
    assert part.loss(features(), actions, is_pad)["loss"].item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("mixture", ["step", "chunk"])
def test_what_is_drawn_has_the_moments_of_the_mixture(mixture: str) -> None:
    part = head(mixture=mixture, evaluation_std=None).eval()
    one = {"state.pooled": Feature(features().pop("state.pooled").values[:1].expand(40_000, -1))}
    drawn = part.sample(one, torch.Generator().manual_seed(0)).double()
    weights, means, deviations = (value[0].double() for value in part.predict(one))
    shares = weights.exp()[..., None]
    mean = (shares * means).sum(0)
    variance = (shares * (deviations**2 + means**2)).sum(0) - mean**2
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.02, rtol=0.0)
    torch.testing.assert_close(drawn.var(0), variance, atol=0.0, rtol=0.05)


@pytest.mark.parametrize("mixture", ["step", "chunk"])
def test_with_low_noise_whole_modes_are_drawn_by_their_weights(mixture: str) -> None:
    part = head(mixture=mixture).eval()
    one = {"state.pooled": Feature(features().pop("state.pooled").values[:1].expand(20_000, -1))}
    drawn = part.sample(one, torch.Generator().manual_seed(0))
    weights, means, _ = (value[0] for value in part.predict(one))
    distances = (drawn[:, None] - means).abs().amax(-1)  # (B, M, H)
    assert distances.min(1).values.max() < 1e-3
    nearest = distances.argmin(1)  # (B, H)
    for step in range(HORIZON):
        shares = torch.bincount(nearest[:, step], minlength=MODES) / len(nearest)
        torch.testing.assert_close(
            shares, weights[:, step if mixture == "step" else 0].exp(), atol=0.02, rtol=0.0
        )
    together = (nearest == nearest[:, :1]).all()
    assert together == (mixture == "chunk")


def test_the_mean_is_that_of_the_likeliest_mode() -> None:
    part = head(sampling="mean")
    weights, means, _ = part.predict(features())
    acted = part.sample(features(), torch.Generator().manual_seed(0))
    for sample in range(BATCH):
        for step in range(HORIZON):
            best = int(weights[sample, :, step].argmax())
            assert torch.equal(acted[sample, step], means[sample, best, step])
    with pytest.raises(SpecError, match="no effect") as caught:
        Gmm.specs(Gmm.Config(type="gmm", sampling="mean", evaluation_std=None), INPUTS, {})
    assert caught.value.field == "evaluation_std"


def test_noise_is_small_in_evaluation_only() -> None:
    part = head()
    means = part.predict(features(1000))[1]

    def spread() -> float:
        drawn = part.sample(features(1000), torch.Generator().manual_seed(0))
        return (drawn[:, None] - means).abs().amax(-1).min(1).values.median().item()

    part.eval()
    assert spread() < 1e-2
    part.train()
    assert spread() > 0.1
