"""Layers that parts share, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from policysmith.builder.training.optimization import decays
from policysmith.components.layers import CategoryLinear


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
