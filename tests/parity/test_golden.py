"""The recipe that gives both sides of a comparison the same weights, and the stored goldens themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from .golden import FOLDER, WHOLE_GRADIENT, digest, fill, gradients, load, refill, uniform

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_values_of_a_name_are_fixed_for_good() -> None:
    expected = [0.8821588158607483, -0.44643154740333557, 1.1745116710662842]
    assert uniform("a", (3,)).tolist() == expected
    assert uniform("a", (2, 3))[0].tolist() == expected
    assert not torch.equal(uniform("b", (3,)), uniform("a", (3,)))


def test_values_have_mean_zero_and_variance_one() -> None:
    values = uniform("many", (100_000,)).double()
    assert abs(values.mean()) < 0.01
    assert values.var().item() == pytest.approx(1.0, abs=0.01)
    assert values.abs().max() <= math.sqrt(3.0)


def test_layers_keep_the_scale_of_their_input() -> None:
    weights = fill({"x.weight": (400, 300), "c.weight": (40, 20, 5), "m.W": (3, 300, 400)})
    assert weights["x.weight"].std().item() == pytest.approx(300**-0.5, rel=0.05)
    assert weights["c.weight"].std().item() == pytest.approx(100**-0.5, rel=0.05)
    assert weights["m.W"].std().item() == pytest.approx(300**-0.5, rel=0.05)
    assert fill({"n.weight": (9,)})["n.weight"].sub(1.0).abs().max() < 0.2
    assert fill({"n.bias": (9,)})["n.bias"].abs().max() < 0.2


def test_refill_gives_parameters_and_statistics_of_norms_but_no_other_buffer() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module.register_buffer("table", torch.ones(2))
    shapes = refill(module)
    weights = fill(shapes)
    assert "1.running_var" in shapes
    assert "table" not in shapes
    assert all(torch.equal(module.state_dict()[name], weights[name]) for name in shapes)


def test_digest_of_a_large_gradient_notices_an_exchange_of_two_elements() -> None:
    gradient = torch.arange(WHOLE_GRADIENT + 1.0)
    exchanged = gradient[[1, 0, *range(2, len(gradient))]]
    assert digest("g", gradient).shape == (2,)
    assert not torch.allclose(digest("g", gradient), digest("g", exchanged), rtol=1e-6)
    assert digest("g", gradient[:8]).shape == (8,)


def test_gradients_are_named_like_parameters() -> None:
    module = nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    found = gradients(module)
    assert found["weight"].tolist() == [[1.0, 1.0]]
    assert found["bias"].tolist() == [1.0]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_is_whole_finite_and_small(name: str) -> None:
    golden = load(name)
    for group in (golden.inputs, golden.draws, golden.outputs, golden.gradients):
        assert all(value.float().isfinite().all() for value in group.values())
    assert golden.inputs
    assert golden.outputs
    assert golden.config
    assert set(golden.gradients) <= set(golden.facts["weights"])
    assert golden.facts["versions"]["lerobot"]
    assert sum(FOLDER.joinpath(f"{name}.{end}").stat().st_size for end in ("json", "safetensors")) < 300_000
