"""The transformer that an expert attends to, against its layers written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.necks.prefix import Prefix
from policysmith.components.networks.expert import Expert
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

INPUTS = {"a.tokens": Spec(Kind.TOKENS, ("B", 4, 6)), "b.pooled": Spec(Kind.POOLED, ("B", 3))}
OPTIONS: dict[str, Any] = {"type": "prefix", "reads": ["a", "b"], "width": 12, "heads": 3, "depth": 2}
EVERY = ("key_values", "tokens")


def make(inputs: dict[str, Spec] | None = None, **options: Any) -> Prefix:
    inputs = inputs or INPUTS
    config = Prefix.Config.model_validate({**OPTIONS, **options})
    Prefix.specs(config, inputs, {})
    part = Prefix(config, inputs, {}).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return part


def features(mask: Tensor | None = None) -> dict[str, Feature]:
    return {
        "a.tokens": Feature(torch.randn(2, 4, 6).double(), mask),
        "b.pooled": Feature(torch.randn(2, 3).double()),
    }


def turned(head: Tensor, position: int) -> Tensor:
    """Rotate one head (E,), its coordinates (i, i + E / 2) by position / 10000 ** (2 i / E)."""
    half, out = len(head) // 2, head.clone()
    for i in range(half):
        angle = position * 10_000.0 ** (-2 * i / len(head))
        out[i] = head[i] * math.cos(angle) - head[i + half] * math.sin(angle)
        out[i + half] = head[i + half] * math.cos(angle) + head[i] * math.sin(angle)
    return out


def written_out(part: Prefix, sample: dict[str, Feature]) -> tuple[Tensor, Tensor]:
    """Compute keys and values (L, 2, G, N, E) and tokens (N, D) of one sample, token by token."""
    module: Any = part
    a, b = module.joined.project["a_tokens"], module.joined.project["b_pooled"]
    tokens = torch.cat([a(sample["a.tokens"].values[0]), b(sample["b.pooled"].values[:1])])
    tokens = module.norm_in(tokens) + module.positions[0]
    kept = []
    for layer in module.layers:
        split = layer.query_key_value(layer.norms[0](tokens)).reshape(5, 3, 3, 4)  # (N, 3, G, E)
        query, key, value = split.unbind(1)
        keys = torch.stack([torch.stack([turned(head, n) for head in key[n]]) for n in range(5)])
        mixed = []
        for n in range(5):
            heads = []
            for g in range(3):
                scores = keys[:, g] @ turned(query[n, g], n) / 2.0
                heads.append(scores.softmax(0) @ value[:, g])
            mixed.append(torch.cat(heads))
        tokens = tokens + layer.out(torch.stack(mixed))
        tokens = tokens + layer.mlp(layer.norms[1](tokens))
        kept.append(torch.stack([keys.transpose(0, 1), value.transpose(0, 1)]))
    return torch.stack(kept), module.norm_out(tokens)


def test_it_is_its_layers_written_out() -> None:
    part, seen = make(), features()
    out = part(seen, EVERY)
    assert out["key_values"].end is not None
    assert out["key_values"].end.tolist() == [5, 5]
    for index in range(2):
        one = {key: Feature(held.values[index : index + 1]) for key, held in seen.items()}
        key_values, tokens = written_out(part, one)
        torch.testing.assert_close(out["key_values"].values[index], key_values, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(out["tokens"].values[index], tokens, rtol=1e-6, atol=1e-7)


def test_specs_are_the_shapes() -> None:
    part = make()
    specs, out = Prefix.specs(part.config, INPUTS, {}), part(features(), EVERY)
    for key, spec in specs.items():
        assert tuple(out[key].values.shape) == (2, *spec.dims[1:])
    assert part(features(), ("tokens",)).keys() == {"tokens"}


def test_hidden_tokens_have_no_influence_and_take_no_place() -> None:
    """With its last tokens hidden, a sequence is the shorter sequence, and its positions go on where that one ends."""
    part = make(positions="none")
    mask = torch.tensor([[True, True, False, False]] * 2)
    long = features(mask)
    out = part(long, EVERY)
    short = {
        "a.tokens": Feature(long["a.tokens"].values[:, :2]),
        "b.pooled": long["b.pooled"],
    }
    other = part(short, EVERY)
    valid = [0, 1, 4]
    torch.testing.assert_close(
        out["key_values"].values[..., valid, :], other["key_values"].values, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(out["tokens"].values[:, valid], other["tokens"].values, rtol=1e-5, atol=1e-6)
    assert out["key_values"].end is not None
    assert out["key_values"].end.tolist() == [3, 3]


def test_an_expert_goes_on_where_it_ends() -> None:
    """Every published value of every layer reaches the expert's actions."""
    part = make().float()
    action = {"action": Spec(Kind.ACTION, ("B", 3, 2))}
    specs = {"p.key_values": Prefix.specs(part.config, INPUTS, {})["key_values"], **action}
    config = Expert.Config(type="expert", width=8, hidden=16, heads=3)
    Expert.specs(config, specs, {"time": "unit"})
    expert = Expert(config, specs, {"time": "unit"})
    read = {key: Feature(held.values.float()) for key, held in features().items()}
    made = part(read, ("key_values",))["key_values"]
    made.values.retain_grad()
    context = expert.encode({"p.key_values": made})
    expert(torch.randn(2, 3, 2), torch.rand(2), context).square().sum().backward()
    assert made.values.grad is not None
    assert (made.values.grad.abs().sum((3, 4, 5)) > 0).all()


@pytest.mark.parametrize(
    ("options", "inputs", "field"),
    [
        ({"width": 10, "heads": 3}, INPUTS, "heads"),
        ({"width": 9, "heads": 3}, INPUTS, "heads"),
        ({"reads": ["t"]}, {"t.tokens": Spec(Kind.TOKENS, ("B", "L", 6))}, "positions"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], inputs: dict[str, Spec], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        make(inputs, **options)
    assert refused.value.field == field
