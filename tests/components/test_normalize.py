"""Normalization of states and actions against numpy in double precision."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.components.transforms.normalize import Normalize
from policysmith.schemas.errors import DatasetError, SpecError
from policysmith.schemas.specs import Kind, Range, Spec

WIDTH = 3
AFFINE = ("mean_std", "min_max", "quantiles")
PAIRS = {
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantiles": ("q01", "q99"),
    "q99": ("q01", "q99"),
    "binary": ("min", "max"),
}

centers = st.lists(st.floats(-100, 100), min_size=WIDTH, max_size=WIDTH)
spreads = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=WIDTH, max_size=WIDTH)


def statistics(mode: str, center: list[float], spread: list[float]) -> dict[str, list[float]]:
    """Return statistics with this center and half width (deviation, for `mean_std`)."""
    first, second = PAIRS[mode]
    if mode == "mean_std":
        return {first: center, second: spread}
    return {
        first: [c - s for c, s in zip(center, spread, strict=True)],
        second: [c + s for c, s in zip(center, spread, strict=True)],
    }


def make(statistics: dict[str, Any], inputs: dict[str, Spec] | None = None, **options: Any) -> Normalize:
    config = Normalize.Config(type="normalize", **options)
    inputs = {"action": Spec(Kind.ACTION, ("B", 2, WIDTH))} if inputs is None else inputs
    specs = Normalize.specs(config, inputs, {"statistics": statistics})
    assert {key: replace(spec, range=None, bounds=None) for key, spec in specs.items()} == inputs
    return Normalize(config, inputs, {"statistics": statistics})


@settings(max_examples=150)
@given(mode=st.sampled_from(AFFINE), center=centers, spread=spreads, seed=st.integers(0, 1000))
def test_forward_is_the_formula_and_inverse_undoes_it(
    mode: str, center: list[float], spread: list[float], seed: int
) -> None:
    part = make({"action": statistics(mode, center, spread)}, mode=mode)
    random = np.random.default_rng(seed)
    varies = np.array(spread) > 0
    units = random.uniform(-3, 3, (4, 2, WIDTH))  # beyond the range, too
    values = np.array(center) + units * np.array(spread)
    batch = {"action": torch.tensor(values, dtype=torch.float32)}
    normal = part(batch)["action"]
    exact = np.where(varies, (values - np.array(center)) / np.where(varies, spread, 1.0), 0.0)
    size = (np.abs(values) + np.abs(center)) / np.where(varies, spread, 1.0)
    assert (np.abs(normal.numpy() - exact) <= 4e-7 * (size + 1.0) + 1e-6).all()
    back = part.inverse({"action": normal})["action"].numpy()
    assert (
        np.abs(back - values) <= 1e-6 * (np.abs(values) + np.abs(center) + np.array(spread)) + 1e-30
    ).all()


@pytest.mark.parametrize("mode", ["min_max", "q99"])
def test_bounds_map_to_one(mode: str) -> None:
    part = make({"action": statistics(mode, [1.0, -2.0, 0.0], [2.0, 0.5, 3.0])}, mode=mode)
    low, high = torch.tensor([-1.0, -2.5, -3.0]), torch.tensor([3.0, -1.5, 3.0])
    normal = part({"action": torch.stack([low, high])[None]})["action"]
    assert torch.equal(normal, torch.stack([-torch.ones(3), torch.ones(3)])[None])


def test_constants_map_to_zero_and_back_even_where_they_move() -> None:
    part = make({"action": statistics("mean_std", [5.0, 1e6, 0.0], [0.0, 1e-3, 0.0])})
    moved = part({"action": torch.full((1, 2, WIDTH), 7.0)})["action"]
    assert torch.equal(moved, torch.zeros(1, 2, WIDTH))
    back = part.inverse({"action": torch.randn(1, 2, WIDTH)})["action"]
    assert torch.equal(back, torch.tensor([5.0, 1e6, 0.0]).expand(1, 2, WIDTH))


def test_small_units_are_not_taken_for_constants() -> None:
    part = make({"action": statistics("mean_std", [0.0, 1e-6, 1e-4], [1e-7, 1e-6, 1e-6])})
    values = torch.tensor([[[1e-7, 3e-6, 1.02e-4]]])
    torch.testing.assert_close(
        part({"action": values})["action"], torch.tensor([[[1.0, 2.0, 2.0]]]), atol=1e-4, rtol=0
    )


@settings(max_examples=50)
@given(center=centers, spread=spreads, bits=st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH))
def test_binary_values_come_back(center: list[float], spread: list[float], bits: list[bool]) -> None:
    held = statistics("binary", center, spread)
    part = make({"action": held}, mode="binary")
    values = torch.tensor([[held["max" if bit else "min"][i] for i, bit in enumerate(bits)]])[None]
    normal = part({"action": values})["action"]
    expected = [[(1.0 if bit else -1.0) if spread[i] > 0 else 0.0 for i, bit in enumerate(bits)]]
    assert normal.tolist() == [expected]
    torch.testing.assert_close(part.inverse({"action": normal})["action"], values, rtol=1e-5, atol=1e-4)


def test_modes_of_single_keys() -> None:
    inputs = {
        "observation.state": Spec(Kind.STATE, ("B", 1, 1)),
        "action": Spec(Kind.ACTION, ("B", 1, 1)),
        "observation.images.a": Spec(Kind.IMAGE, ("B", 1, 3, 4, 4)),
    }
    held = {
        key: {"mean": [1.0], "std": [2.0], "min": [0.0], "max": [4.0]}
        for key in ("observation.state", "action")
    }
    batch = {"observation.state": torch.tensor([[[3.0]]]), "action": torch.tensor([[[3.0]]])}
    changed = make(held, inputs, modes={"action": "min_max"})(batch)
    assert (changed["observation.state"].item(), changed["action"].item()) == (1.0, 0.5)
    changed = make(held, inputs, keys=["action"])(batch)
    assert (changed["observation.state"].item(), changed["action"].item()) == (3.0, 1.0)
    changed = make(held, inputs, mode="identity", modes={"action": "mean_std"})(batch)
    assert (changed["observation.state"].item(), changed["action"].item()) == (3.0, 1.0)
    make({}, inputs, mode="identity")  # needs no statistics


def test_missing_statistics_name_the_cure() -> None:
    held = {"action": {"mean": [0.0] * WIDTH, "std": [1.0] * WIDTH}}
    with pytest.raises(SpecError, match="`q99` needs `q01` of `action`") as caught:
        make(held, mode="q99")
    assert (caught.value.field, caught.value.source) == ("mode", "action")
    assert "mean_std" in caught.value.help
    with pytest.raises(SpecError) as caught:
        make(held, modes={"action": "min_max"})
    assert caught.value.field == "modes.action"
    with pytest.raises(SpecError, match="statistics of the dataset do not hold"):
        make({})


def test_statistics_of_another_width_are_refused() -> None:
    with pytest.raises(SpecError, match="have 4 dimensions, its values have 3") as caught:
        make({"action": {"mean": [0.0] * 4, "std": [1.0] * 4}})
    assert caught.value.source == "action"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_damaged_statistics_are_refused(bad: float) -> None:
    with pytest.raises(DatasetError, match="`action`"):
        make({"action": {"mean": [0.0] * 3, "std": [1.0, bad, 1.0]}})
    with pytest.raises(DatasetError, match="`action`"):
        make({"action": {"min": [0.0] * 3, "max": [1.0, bad, 1.0]}}, mode="min_max")


def test_unknown_keys_are_refused() -> None:
    held = {"action": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    with pytest.raises(SpecError) as caught:
        make(held, keys=["action", "observation.stat"])
    assert caught.value.field == "keys.1"
    with pytest.raises(SpecError) as caught:
        make(held, modes={"actions": "min_max"})
    assert caught.value.field == "modes.actions"


def test_half_precision_values_are_normalized_in_float32() -> None:
    part = make({"action": statistics("mean_std", [100.0, 0.0, 0.0], [0.01, 1.0, 1.0])})
    normal = torch.tensor([[[1.0, 0.5, -0.25]]], dtype=torch.bfloat16)
    back = part.inverse({"action": normal})["action"]
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, torch.tensor([[[100.01, 0.5, -0.25]]]))


def test_first_use_in_inference_mode_does_not_forbid_training() -> None:
    part = make({"action": statistics("mean_std", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0])})
    values = torch.ones(1, 2, WIDTH)
    with torch.inference_mode():
        part({"action": values})
    wanted = torch.ones(1, 2, WIDTH, requires_grad=True)
    part.inverse({"action": wanted})["action"].sum().backward()
    assert wanted.grad is not None
    assert torch.equal(wanted.grad, torch.full((1, 2, WIDTH), 2.0))


def test_no_tensors_are_pickled_or_saved() -> None:
    part = make({"action": statistics("mean_std", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0])})
    part({"action": torch.ones(1, 2, WIDTH)})
    assert b"_rebuild_tensor" not in pickle.dumps(part)
    assert b"_rebuild_tensor" in pickle.dumps(torch.ones(1))
    assert part.state_dict() == {}


def test_q99_clips_and_quantiles_do_not() -> None:
    held = {"action": statistics("q99", [1.0, 0.0, 0.0], [2.0, 1.0, 1.0])}
    values = torch.tensor([[[5.0, -3.0, 0.5]]])
    clipped, kept = make(held, mode="q99"), make(held, mode="quantiles")
    assert clipped({"action": values})["action"].tolist() == [[[1.0, -1.0, 0.5]]]
    assert kept({"action": values})["action"].tolist() == [[[2.0, -3.0, 0.5]]]
    back = clipped.inverse({"action": torch.tensor([[[1.5, -1.0, 0.5]]])})["action"]
    assert back.tolist() == [[[4.0, -1.0, 0.5]]]  # a prediction beyond the percentiles is not clipped


@settings(max_examples=50)
@given(
    low=st.lists(st.floats(-100, 0), min_size=WIDTH, max_size=WIDTH),
    high=st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=WIDTH, max_size=WIDTH),
)
def test_scale_keeps_signs_and_zero(low: list[float], high: list[float]) -> None:
    part = make({"action": {"min": low, "max": high}}, mode="scale")
    values = torch.tensor([[low, high, [0.0] * WIDTH]])
    normal = part({"action": values})["action"]
    largest = np.maximum(np.abs(low), np.abs(high))
    exact = values.double().numpy() / np.where(largest > 1e-30, largest, np.inf)
    np.testing.assert_allclose(normal.numpy(), exact, atol=1e-6)
    torch.testing.assert_close(part.inverse({"action": normal})["action"], values, rtol=1e-5, atol=1e-30)


def test_single_dimensions_have_their_own_mode() -> None:
    held = {"mean": [1.0, 1.0, 1.0], "std": [2.0, 2.0, 2.0], "min": [0.0] * 3, "max": [4.0] * 3}
    dims = [
        {"key": "action", "dims": [-1], "mode": "binary"},
        {"key": "action", "dims": [1], "mode": "identity"},
    ]
    part = make({"action": held}, dims=dims)
    values = torch.tensor([[[3.0, 3.0, 3.0], [0.0, 0.0, 0.0]]])
    normal = part({"action": values})["action"]
    assert normal.tolist() == [[[1.0, 3.0, 1.0], [-0.5, 0.0, -1.0]]]
    assert part.inverse({"action": normal})["action"].tolist() == [[[3.0, 3.0, 4.0], [0.0, 0.0, 0.0]]]
    only = make({"action": held}, mode="identity", dims=[{"key": "action", "dims": [0], "mode": "min_max"}])
    assert only({"action": values})["action"].tolist() == [[[0.5, 3.0, 3.0], [-1.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"key": "actions", "dims": [0], "mode": "binary"}, "dims.0.key"),
        ({"key": "action", "dims": [0, 3], "mode": "binary"}, "dims.0.dims.1"),
        ({"key": "action", "dims": [0, -3], "mode": "binary"}, "dims.0.dims.1"),
        ({"key": "action", "dims": [0], "mode": "q99"}, "dims.0.mode"),
    ],
)
def test_dimensions_that_cannot_be_normalized_are_located(entry: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        make(
            {"action": {"mean": [0.0] * 3, "std": [1.0] * 3, "min": [0.0] * 3, "max": [1.0] * 3}},
            dims=[entry],
        )
    assert caught.value.field == field


def test_a_dimension_has_one_mode_under_dims() -> None:
    entries = [
        {"key": "action", "dims": [0], "mode": "binary"},
        {"key": "action", "dims": [-3], "mode": "scale"},
    ]
    with pytest.raises(SpecError, match="dimension 0 of `action` has two modes") as caught:
        make({"action": {"min": [0.0] * 3, "max": [1.0] * 3}}, mode="min_max", dims=entries)
    assert caught.value.field == "dims.1.dims"


def test_statistics_of_other_values_are_stale() -> None:
    inputs = {"action": Spec(Kind.ACTION, ("B", 2, WIDTH), range=Range.CHANGED)}
    held = {"mean": [0.0] * WIDTH, "std": [1.0] * WIDTH}
    config = Normalize.Config(type="normalize")
    with pytest.raises(SpecError, match="an earlier transform changes its values") as caught:
        Normalize.specs(config, inputs, {"statistics": {"action": held}})
    assert (caught.value.source, caught.value.trait) == ("action", "range")
    facts = {"statistics": {"action": held}, "measured": {"action": {**held, "std": [4.0] * WIDTH}}}
    part = Normalize(config, inputs, facts)
    assert part({"action": torch.ones(1, 2, WIDTH)})["action"].unique().tolist() == [0.25]


FULL = {
    "mean": [0.0, 2.0, 5.0],
    "std": [1.0, 0.5, 0.0],
    "min": [-3.0, 1.0, 5.0],
    "max": [2.0, 4.0, 5.0],
    "q01": [-1.0, 1.5, 5.0],
    "q99": [1.0, 2.5, 5.0],
}


@pytest.mark.parametrize(
    ("mode", "bounds"),
    [
        ("mean_std", (-3.0, 4.0)),
        ("min_max", (-1.0, 1.0)),
        ("quantiles", (-3.0, 4.0)),
        ("q99", (-1.0, 1.0)),
        ("scale", (-1.0, 1.0)),
        ("binary", (-1.0, 1.0)),
    ],
)
def test_specs_carry_the_bounds_of_the_normalized_data(mode: str, bounds: tuple[float, float]) -> None:
    inputs = {"action": Spec(Kind.ACTION, ("B", 2, WIDTH))}
    config, facts = Normalize.Config(type="normalize", mode=mode), {"statistics": {"action": FULL}}
    spec = Normalize.specs(config, inputs, facts)["action"]
    assert spec.bounds == pytest.approx(bounds)
    ends = torch.tensor([[FULL["min"], FULL["max"]]])
    normal = Normalize(config, inputs, facts)({"action": ends})["action"]
    assert spec.bounds[0] <= float(normal.min())
    assert float(normal.max()) <= spec.bounds[1]


def test_bounds_are_unknown_where_the_statistics_hold_no_minimum() -> None:
    inputs = {"action": Spec(Kind.ACTION, ("B", 2, WIDTH))}
    held = {name: FULL[name] for name in ("mean", "std")}
    facts = {"statistics": {"action": held}}
    spec = Normalize.specs(Normalize.Config(type="normalize"), inputs, facts)["action"]
    assert spec.bounds is None


RARE = {
    "mean": [0.005, 0.0],
    "std": [0.07, 0.3],
    "min": [0.0, -1.0],
    "max": [1.0, 1.0],
    "q01": [0.0, -0.7],
    "q99": [0.0, 0.7],
}


@pytest.mark.parametrize("mode", ["quantiles", "q99"])
@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_a_dimension_with_rare_values_keeps_them_and_says_so(mode: str, spread: float) -> None:
    inputs = {"action": Spec(Kind.ACTION, ("B", 2, 2))}
    held = {**RARE, "q99": [spread, 0.7]}
    config, facts = Normalize.Config(type="normalize", mode=mode), {"statistics": {"action": held}}
    part = Normalize(config, inputs, facts)
    clicks = torch.tensor([[[0.0, 0.1], [1.0, -0.1]]])
    normal = part({"action": clicks})["action"]
    assert normal[0, :, 0].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(part.inverse({"action": normal})["action"], clicks)
    (remark,) = part.remarks(config, inputs, facts)
    assert "dimension 0," in remark
    assert "min_max" in remark


def test_q99_says_where_it_clips_most_of_the_range() -> None:
    inputs = {"action": Spec(Kind.ACTION, ("B", 2, 2))}
    held = {**RARE, "q99": [0.01, 0.7]}
    facts = {"statistics": {"action": held}}
    (remark,) = Normalize.remarks(Normalize.Config(type="normalize", mode="q99"), inputs, facts)
    assert "clips `action`" in remark
    assert "dimension 0;" in remark
    assert not Normalize.remarks(Normalize.Config(type="normalize", mode="quantiles"), inputs, facts)


def test_robots_may_differ_in_which_dimensions_are_rare() -> None:
    inputs = {
        "action": Spec(Kind.ACTION, ("B", 1, 1)),
        "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=2),
    }
    usual = {"min": [-2.0], "max": [2.0], "q01": [-1.0], "q99": [1.0]}
    rare = {"min": [0.0], "max": [1.0], "q01": [0.0], "q99": [0.0]}
    facts = {"statistics": {"a": {"action": usual}, "b": {"action": rare}}}
    part = Normalize(Normalize.Config(type="normalize", mode="q99"), inputs, facts)
    batch = {"action": torch.tensor([[[2.0]], [[1.0]]]), "embodiment": torch.tensor([0, 1])}
    normal = part(batch)
    assert normal["action"].flatten().tolist() == [1.0, 1.0]
    assert part.inverse(normal)["action"].flatten().tolist() == [1.0, 1.0]
