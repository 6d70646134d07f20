"""Layers that parts share, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policysmith.builder.training.optim.groups import decays
from policysmith.components.kernels import attention
from policysmith.components.layers.basic import Attention, CategoryLinear
from policysmith.components.layers.rotary import rotary_table


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (4, 2, 3, 5)])
def test_category_linear_is_one_linear_layer_for_each_category(shape: tuple[int, ...]) -> None:
    layer = CategoryLinear(3, 5, 7).double()
    values, ids = torch.randn(shape, dtype=torch.float64), torch.tensor([2, 0, 2, 1])
    given = layer(values, ids)
    for row, category in enumerate(ids.tolist()):
        expected = values[row] @ layer.weight[category] + layer.bias[category]
        torch.testing.assert_close(given[row], expected, rtol=0.0, atol=1e-12)


def test_category_linear_starts_in_the_range_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer, plain = CategoryLinear(4, 100, 50), nn.Linear(100, 50)
    for one, other in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
        assert one.abs().max() <= 0.1
        assert one.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1)
        assert other.abs().max() <= 0.1


def test_a_category_gets_no_gradient_from_the_samples_of_others() -> None:
    layer = CategoryLinear(3, 5, 7)
    layer(torch.randn(4, 2, 5), torch.tensor([2, 0, 2, 0])).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad[[0, 2]].flatten(1).any(1).all()
        assert not parameter.grad[1].any()


def test_biases_of_categories_do_not_decay() -> None:
    layer = CategoryLinear(3, 5, 7)
    assert decays(layer, "head.layers.weight", layer.weight)
    assert not decays(layer, "head.layers.bias", layer.bias)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attention is left to the kernel on a CPU too, where it runs as plain torch."""
    monkeypatch.setattr(attention, "uses_kernel", lambda values: True)
    return str(request.param)


def test_attention_of_parts_turns_queries_and_keys(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = Attention(32, 2).to(device).bfloat16()
    tokens = torch.randn(3, 5, 32, device=device).bfloat16()
    rotary = rotary_table(torch.arange(5, device=device).expand(3, 5), 16)
    ours = layer(tokens, tokens, rotary=rotary)
    monkeypatch.setattr(attention, "uses_kernel", lambda values: False)
    assert torch.equal(ours, layer(tokens, tokens, rotary=rotary))
    assert not torch.equal(ours, layer(tokens, tokens))


def test_attention_of_parts_gathers_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = Attention(32, 2, 24).to(device).bfloat16()
    queries, context = (torch.randn(3, n, d, device=device).bfloat16() for n, d in ((5, 32), (9, 24)))
    mask = torch.rand(3, 9, device=device) < 0.5
    mask[0] = False
    each = torch.rand(3, 5, 9, device=device) < 0.5
    for given in (
        (queries, context, mask),
        (queries, context),
        (queries, context, each),
        (queries, context, mask[1:2]),
    ):
        with monkeypatch.context() as plain:
            plain.setattr(attention, "uses_kernel", lambda values: False)
            expected = layer(*given)
        torch.testing.assert_close(layer(*given), expected, rtol=2e-2, atol=2e-2)
        if len(given) > 2 and given[2] is not mask:  # what it is not made for
            continue
        with monkeypatch.context() as marked:
            marked.setattr(attention, "attention", lambda query, *_, **__: torch.zeros_like(query))
            torch.testing.assert_close(layer(*given), layer.out.bias.expand(3, 5, -1))
            with torch.no_grad():  # torch's own is launched in less time
                torch.testing.assert_close(layer(*given), expected)
