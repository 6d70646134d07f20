"""Inputs and options of the ACT head; tests/parity compares its numbers with LeRobot's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.heads.act import Act
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

HORIZON, ACTION, WIDTH = 4, 2, 16
INPUTS = {
    "vision.tokens": Spec(Kind.TOKENS, ("B", 12, 6), grid=(2, 2, 3)),
    "query.tokens": Spec(Kind.TOKENS, ("B", 3, 5)),
    "text.tokens": Spec(Kind.TOKENS, ("B", "L", 4)),
    "proprio.pooled": Spec(Kind.POOLED, ("B", 7)),
    "goal.pooled": Spec(Kind.POOLED, ("B", 3)),
    "action": Spec(Kind.ACTION, ("B", HORIZON, ACTION)),
}
TINY: dict[str, Any] = {"width": WIDTH, "heads": 2, "feedforward": 8, "latent": 4, "dropout": 0.0}


def config(**options: Any) -> Act.Config:
    return Act.Config(type="act", **{**TINY, **options})


def features(length: int = 5) -> dict[str, Feature]:
    random = torch.Generator().manual_seed(0)
    shapes = {key: [length if d == "L" else d for d in spec.dims[1:]] for key, spec in INPUTS.items()}
    found = {key: Feature(torch.randn(2, *shape, generator=random)) for key, shape in shapes.items()}
    del found["action"]
    found["text.tokens"] = Feature(
        found["text.tokens"].values, torch.arange(length)[None] < torch.tensor([[2], [4]])
    )
    return found


def actions() -> tuple[Tensor, Tensor]:
    values = torch.randn(2, HORIZON, ACTION, generator=torch.Generator().manual_seed(1))
    return values, torch.zeros_like(values, dtype=torch.bool)


def test_every_kind_of_token_has_its_positions() -> None:
    head = Act(config(), INPUTS, {})
    tokens, positions, mask = head.encode(features())
    assert tokens.shape == (2, 1 + 2 + 12 + 3 + 5, WIDTH)
    assert mask is not None
    assert mask[:, :18].all()
    assert mask[:, 18:].sum(1).tolist() == [2, 4]
    first, maps, learned, text = positions[0].split([3, 12, 3, 5])
    assert torch.equal(first, head.positions)
    assert torch.equal(maps[:6], maps[6:])  # two frames of one size
    assert len(maps[:6].unique(dim=0)) == 6
    assert torch.equal(learned, head.token_positions["query_tokens"])
    assert not text.any()


def test_the_encoder_of_the_actions_sees_the_features_that_are_named() -> None:
    assert set(Act(config(), INPUTS, {}).posterior.project) == {"proprio_pooled", "goal_pooled"}
    head = Act(config(posterior_reads=["proprio"]), INPUTS, {})
    assert set(head.posterior.project) == {"proprio_pooled"}
    assert not Act(config(posterior_reads=[]), INPUTS, {}).posterior.project
    values, is_pad = actions()
    given = features()
    mean = head.posterior(given, values, is_pad.all(-1))[0]
    for key, changes in (("proprio.pooled", True), ("goal.pooled", False)):
        other = {**given, key: Feature(given[key].values + 1.0)}
        assert torch.equal(head.posterior(other, values, is_pad.all(-1))[0], mean) != changes


def test_samples_of_padding_have_no_share_in_the_divergence() -> None:
    head = Act(config(), INPUTS, {})
    values, is_pad = actions()
    with torch.no_grad():
        head.posterior.out.weight.zero_()
        head.posterior.out.bias.copy_(torch.arange(8.0))
        divergence = head.loss(features(), values, is_pad)["kl"]
        is_pad[1] = True
        torch.testing.assert_close(head.loss(features(), values, is_pad)["kl"], divergence)
    mean, log_variance = torch.arange(4.0), torch.arange(4.0, 8.0)
    exact = 0.5 * (log_variance.exp() + mean**2 - 1.0 - log_variance).sum()
    torch.testing.assert_close(divergence, exact)


def test_evaluation_is_without_chance_and_without_divergence() -> None:
    head = Act(config(), INPUTS, {}).eval()
    values, is_pad = actions()
    losses = head.loss(features(), values, is_pad)
    assert set(losses) == {"loss"}
    torch.testing.assert_close(losses["loss"], (head.sample(features()) - values).abs().mean())


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"width": 18}, "width", "cannot be shared by 2 heads and 4 parts"),
        ({"width": 20, "heads": 3}, "width", "cannot be shared by 3 heads"),
        (
            {"posterior_reads": ["proprio", "vision"]},
            "posterior_reads.1",
            "`vision` is not among the features",
        ),
        ({"variational": False, "posterior_reads": []}, "posterior_reads", "no effect without a variational"),
        ({"variational": False, "kl_weight": 1.0}, "kl_weight", "no effect without a variational"),
        (
            {"variational": False, "posterior_layers": 2},
            "posterior_layers",
            "no effect without a variational",
        ),
    ],
)
def test_options_that_do_not_fit(options: Any, field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        Act.specs(config(**options), INPUTS, {})
    assert caught.value.field == field
    assert caught.value.help
