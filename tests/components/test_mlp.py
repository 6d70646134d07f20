"""The perceptrons: sizes, their errors, and losses against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from policysmith.components.backbones.mlp import MlpBackbone
from policysmith.components.base import Feature
from policysmith.components.features import masked_mean
from policysmith.components.heads.mlp import MlpHead
from policysmith.components.layers.basic import mlp
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

ACTION = Spec(Kind.ACTION, ("B", 4, 3))
INPUTS = {
    "vision.pooled": Spec(Kind.POOLED, ("B", 384)),
    "state.pooled": Spec(Kind.POOLED, ("B", 64)),
    "action": ACTION,
}


def test_layers_are_what_they_say() -> None:
    layers = mlp([4, 8, 6, 2], "silu", dropout=0.5)
    assert [type(layer) for layer in layers] == [
        nn.Linear,
        nn.SiLU,
        nn.Dropout,
        nn.Linear,
        nn.SiLU,
        nn.Dropout,
        nn.Linear,
    ]
    assert [type(layer) for layer in mlp([4, 2], "relu", dropout=0.5)] == [nn.Linear]


def test_backbone_concatenates_states_and_steps() -> None:
    inputs = {
        "observation.state": Spec(Kind.STATE, ("B", 2, 5)),
        "observation.force": Spec(Kind.STATE, ("B", 2, 3)),
    }
    part = MlpBackbone(MlpBackbone.Config(type="mlp", width=6, hidden=[7], activation="tanh"), inputs, {})
    batch = {key: torch.randn(4, 2, spec.width) for key, spec in inputs.items()}
    out = part(batch, ("pooled", "tokens"))
    first, last = part.layers[0], part.layers[2]
    for step in range(2):
        joined = torch.cat([batch["observation.state"][:, step], batch["observation.force"][:, step]], -1)
        expected = last(torch.tanh(first(joined)))
        torch.testing.assert_close(out["tokens"].values[:, step], expected)
        torch.testing.assert_close(out["pooled"].values[:, 6 * step : 6 * step + 6], expected)


def test_backbone_without_hidden_layers_is_linear() -> None:
    inputs = {"observation.state": Spec(Kind.STATE, ("B", 2, 5))}
    part = MlpBackbone(MlpBackbone.Config(type="mlp", width=6, hidden=[]), inputs, {})
    assert [type(layer) for layer in part.layers] == [nn.Linear]
    state = torch.randn(4, 2, 5)
    torch.testing.assert_close(
        part({"observation.state": state}, ("tokens",))["tokens"].values, part.layers[0](state)
    )


def test_backbone_has_layers_of_its_own_for_each_robot() -> None:
    config = MlpBackbone.Config(type="mlp", width=6, hidden=[7], activation="relu", per_embodiment=True)
    inputs = {
        "observation.state": Spec(Kind.STATE, ("B", 2, 5)),
        "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=3),
    }
    assert list(MlpBackbone.reads(config, inputs)) == ["observation.state", "embodiment"]
    assert MlpBackbone.specs(config, inputs, {})["tokens"].dims == ("B", 2, 6)
    part = MlpBackbone(config, inputs, {})
    state, robots = torch.randn(4, 2, 5), torch.tensor([2, 0, 2, 1])
    out = part({"observation.state": state, "embodiment": robots}, ("tokens",))["tokens"].values
    first, last = part.layers.layers[0], part.layers.layers[2]
    for row, robot in enumerate(robots):
        hidden = torch.relu(state[row] @ first.weight[robot] + first.bias[robot])
        torch.testing.assert_close(out[row], hidden @ last.weight[robot] + last.bias[robot])
    with pytest.raises(SpecError, match="the data does not record it") as caught:
        MlpBackbone.reads(config, {"observation.state": inputs["observation.state"]})
    assert caught.value.field == "per_embodiment"


def test_backbone_expects_the_size_it_was_told() -> None:
    inputs = {"observation.state": Spec(Kind.STATE, ("B", 1, 5))}
    MlpBackbone.specs(MlpBackbone.Config(type="mlp", in_dim=5), inputs, {})
    with pytest.raises(SpecError, match="expects a state of 7 values, but the data has 5") as caught:
        MlpBackbone.specs(MlpBackbone.Config(type="mlp", in_dim=7), inputs, {})
    assert (caught.value.field, caught.value.source) == ("in_dim", "observation.state")


def test_states_of_different_steps_do_not_mix() -> None:
    inputs = {"a": Spec(Kind.STATE, ("B", 1, 5)), "b": Spec(Kind.STATE, ("B", 2, 5))}
    with pytest.raises(SpecError, match="steps differ"):
        MlpBackbone.specs(MlpBackbone.Config(type="mlp"), inputs, {})


def test_head_expects_the_size_it_was_told_and_adds_up() -> None:
    assert MlpHead.specs(MlpHead.Config(type="mlp", in_dim=448), INPUTS, {}) == {"action": ACTION}
    with pytest.raises(SpecError, match="expects 768 input features but its inputs give 448") as caught:
        MlpHead.specs(MlpHead.Config(type="mlp", in_dim=768), INPUTS, {})
    assert caught.value.field == "in_dim"
    assert caught.value.source == "vision.pooled"
    assert "448 = 384 (vision) + 64 (state)" in caught.value.help


def test_head_counts_tokens_flattened_or_averaged() -> None:
    inputs = {"vision.tokens": Spec(Kind.TOKENS, ("B", 6, 10)), "action": ACTION}
    MlpHead.specs(MlpHead.Config(type="mlp", in_dim=60), inputs, {})
    MlpHead.specs(MlpHead.Config(type="mlp", in_dim=10, tokens="mean"), inputs, {})
    varying = {"text.tokens": Spec(Kind.TOKENS, ("B", "L", 10)), "action": ACTION}
    MlpHead.specs(MlpHead.Config(type="mlp", in_dim=10, tokens="mean"), varying, {})
    with pytest.raises(SpecError, match="varying number of tokens") as caught:
        MlpHead.specs(MlpHead.Config(type="mlp"), varying, {})
    assert (caught.value.field, caught.value.source) == ("tokens", "text.tokens")


def test_head_without_features_is_refused() -> None:
    with pytest.raises(SpecError, match="no features"):
        MlpHead.specs(MlpHead.Config(type="mlp"), {"action": ACTION}, {})


def test_mean_of_tokens_leaves_masked_ones_out() -> None:
    inputs = {"vision.tokens": Spec(Kind.TOKENS, ("B", 3, 2)), "action": ACTION}
    part = MlpHead(MlpHead.Config(type="mlp", tokens="mean", hidden=[]), inputs, {})
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [90.0, 90.0]]])
    feature = Feature(values, torch.tensor([[True, True, False]]))
    expected = part.layers(torch.tensor([[2.0, 4.0]])).reshape(1, 4, 3)
    torch.testing.assert_close(part.sample({"vision.tokens": feature}), expected)
    expected = part.layers(values.mean(1)).reshape(1, 4, 3)
    torch.testing.assert_close(part.sample({"vision.tokens": Feature(values)}), expected)


def error(kind: str, difference: float, delta: float) -> float:
    size = abs(difference)
    if kind == "l1":
        return size
    if kind == "l2":
        return size**2
    return 0.5 * size**2 if size <= delta else delta * (size - 0.5 * delta)


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
def test_losses_agree_with_plain_loops(kind: str) -> None:
    options: dict[str, Any] = {"loss": kind, "delta": 0.3, "hidden": [8]}
    part = MlpHead(MlpHead.Config(type="mlp", **options), INPUTS, {})
    features = {"vision.pooled": Feature(torch.randn(3, 384)), "state.pooled": Feature(torch.randn(3, 64))}
    actions, is_pad = torch.randn(3, 4, 3), torch.rand(3, 4, 3) < 0.4
    assert is_pad.any()
    assert not is_pad.all()
    predicted = part.sample(features).tolist()
    errors = [
        error(kind, predicted[b][h][a] - actions[b, h, a].item(), 0.3)
        for b in range(3)
        for h in range(4)
        for a in range(3)
        if not is_pad[b, h, a]
    ]
    assert part.loss(features, actions, is_pad)["loss"].item() == pytest.approx(
        sum(errors) / len(errors), rel=1e-5
    )


@settings(max_examples=60)
@given(pads=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_masked_mean_divides_by_the_values_that_count(pads: list[list[bool]]) -> None:
    is_pad = torch.tensor(pads)[..., None].expand(-1, -1, 2)
    errors = torch.arange(is_pad.numel() * 1.0).reshape(is_pad.shape)
    flat = [value for value, pad in zip(errors.flatten().tolist(), is_pad.flatten(), strict=True) if not pad]
    assert masked_mean(errors, is_pad).item() == pytest.approx(sum(flat) / len(flat) if flat else 0.0)
