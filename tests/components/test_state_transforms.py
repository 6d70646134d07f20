"""Transforms of states and actions: sines, joins, padding, noise, dropout and rotations among other values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policysmith.components.registry import TRANSFORMS
from policysmith.components.vectors.rotations import RotationForm, convert, to_matrix
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Range, Spec

STATE, OTHER = "observation.state", "observation.gripper"
INPUTS = {
    STATE: Spec(Kind.STATE, ("B", 2, 5)),
    OTHER: Spec(Kind.STATE, ("B", 2, 1)),
    "observation.images.a": Spec(Kind.IMAGE, ("B", 2, 3, 4, 4)),
    "action": Spec(Kind.ACTION, ("B", 3, 7)),
}


def make(name: str, inputs: Mapping[str, Spec] = INPUTS, **options: Any) -> Any:
    part = TRANSFORMS.get(name)
    config = part.Config(type=name, **options)
    part.specs(config, inputs, {})
    return part(config, inputs, {})


def specs(name: str, inputs: Mapping[str, Spec] = INPUTS, **options: Any) -> dict[str, Spec]:
    part = TRANSFORMS.get(name)
    found: dict[str, Spec] = part.specs(part.Config(type=name, **options), inputs, {})
    return found


def normalized(*keys: str) -> dict[str, Spec]:
    return {**INPUTS, **{key: replace(INPUTS[key], range=Range.NORMALIZED) for key in keys}}


def numbers(size: int = 4) -> dict[str, Tensor]:
    shapes = {STATE: (size, 2, 5), OTHER: (size, 2, 1), "action": (size, 3, 7)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


# --- sin_cos -----------------------------------------------------------------------------------------------------


def test_sin_cos_is_the_formula() -> None:
    batch = numbers()
    state = batch[STATE]
    whole = make("sin_cos", keys=[STATE])(batch)
    assert torch.equal(whole[STATE], torch.cat([state.sin(), state.cos()], -1))
    assert whole[OTHER] is batch[OTHER]
    some = make("sin_cos", keys=[STATE], dims=[3, 0])(batch)[STATE]
    angles = state[..., [3, 0]]
    assert torch.equal(some, torch.cat([state[..., [1, 2, 4]], angles.sin(), angles.cos()], -1))
    found = specs("sin_cos", keys=[STATE], dims=[3, 0])[STATE]
    assert (found.dims, found.range) == (("B", 2, 7), Range.CHANGED)


@settings(max_examples=100)
@given(angles=st.lists(st.floats(-20, 20), min_size=5, max_size=5))
def test_angles_come_back_in_one_turn(angles: list[float]) -> None:
    part = make("sin_cos", keys=[STATE], dims=[0, 2, -1])
    state = torch.tensor(angles).expand(1, 2, 5)
    back = part.inverse(part({STATE: state}))[STATE]
    turns = (state - back) / (2 * math.pi)
    torch.testing.assert_close(turns[..., [0, 2, 4]], turns[..., [0, 2, 4]].round(), atol=1e-5, rtol=0)
    assert torch.equal(back[..., [1, 3]], state[..., [1, 3]])
    assert back[..., [0, 2, 4]].abs().max() <= math.pi + 1e-6


# --- concat ------------------------------------------------------------------------------------------------------


def test_concat_joins_in_order_and_splits_again() -> None:
    part, batch = make("concat", keys=[STATE, OTHER]), numbers()
    joined = part(batch)
    assert joined.keys() == {STATE, "action"}
    assert torch.equal(joined[STATE], torch.cat([batch[STATE], batch[OTHER]], -1))
    back = part.inverse(joined)
    assert back.keys() == batch.keys()
    assert all(torch.equal(back[key], batch[key]) for key in batch)
    found = specs("concat", keys=[STATE, OTHER])
    assert found.keys() == INPUTS.keys() - {OTHER}
    assert (found[STATE].dims, found[STATE].range) == (("B", 2, 6), Range.CHANGED)
    assert found[STATE].why == f"5 ({STATE}) + 1 ({OTHER})"
    both = specs("concat", normalized(STATE, OTHER), keys=[OTHER, STATE])
    assert both[STATE].range is Range.NORMALIZED


def test_concat_needs_all_its_states() -> None:
    part = make("concat", keys=[OTHER, STATE])
    assert set(part.needs(part.config, INPUTS)) == {OTHER, STATE}
    with pytest.raises(SpecError, match=f"needs `{OTHER}`"):
        part({STATE: torch.zeros(1, 2, 5)})


@pytest.mark.parametrize(
    ("options", "inputs", "field", "message"),
    [
        ({"keys": [STATE, "observation.grip"]}, INPUTS, "keys.1", "is not a state"),
        ({"keys": [STATE, "action"]}, INPUTS, "keys.1", "is not a state"),
        ({"keys": [STATE, STATE]}, INPUTS, "keys", "twice"),
        ({"keys": [OTHER]}, INPUTS, "to", "exists already"),
        ({"keys": [OTHER], "to": "action"}, INPUTS, "to", "exists already"),
        ({"keys": [OTHER], "to": "state"}, INPUTS, "to", "is not the name of an observation"),
        ({"keys": [STATE, OTHER]}, normalized(OTHER), None, "only one of"),
        ({"keys": [STATE, OTHER]}, {**INPUTS, OTHER: Spec(Kind.STATE, ("B", 1, 1))}, None, "steps differ"),
    ],
)
def test_states_that_cannot_be_joined(options: Any, inputs: Any, field: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        specs("concat", inputs, **options)
    assert caught.value.field == field


# --- pad_dims ----------------------------------------------------------------------------------------------------


def test_pad_dims_adds_zeros_and_says_which() -> None:
    part, batch = make("pad_dims", sizes={STATE: 8, "action": 32}), numbers()
    padded = part(batch)
    assert torch.equal(padded[STATE][..., :5], batch[STATE])
    assert (padded[STATE].shape[-1], padded["action"].shape[-1]) == (8, 32)
    assert (padded["action"][..., 7:] == 0.0).all()
    assert padded["action_dim_is_pad"].tolist() == [[False] * 7 + [True] * 25] * 4
    back = part.inverse(padded)
    assert all(torch.equal(back[key], batch[key]) for key in batch)
    assert not back["action_dim_is_pad"].any()


def test_padding_is_known_at_deployment_and_adds_to_that_of_other_robots() -> None:
    part = make("pad_dims", sizes={"action": 9})
    assert part({STATE: torch.zeros(2, 2, 5)})["action_dim_is_pad"].tolist() == [[False] * 7 + [True] * 2] * 2
    known = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    mask = part({**numbers(2), "action_dim_is_pad": known})["action_dim_is_pad"]
    assert mask.tolist() == [[False] * 7 + [True] * 2, [False] * 5 + [True] * 4]
    assert "action_dim_is_pad" not in make("pad_dims", sizes={STATE: 9})(numbers())


def test_what_is_too_wide_is_not_cut() -> None:
    with pytest.raises(SpecError, match="`action` has 7 dimensions, more than 6") as caught:
        specs("pad_dims", sizes={STATE: 8, "action": 6})
    assert (caught.value.field, caught.value.source) == ("sizes.action", "action")
    with pytest.raises(SpecError, match="`actions` is not a state or action") as caught:
        specs("pad_dims", sizes={"actions": 6})
    assert caught.value.field == "sizes.actions"
    assert specs("pad_dims", sizes={STATE: 8})[STATE].range is Range.CHANGED
    assert specs("pad_dims", normalized(STATE), sizes={STATE: 8})[STATE].range is Range.NORMALIZED


# --- state_noise, state_dropout ----------------------------------------------------------------------------------


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    batch = {STATE: torch.ones(20_000, 2, 5), "action": torch.ones(2, 3, 7)}
    deviations = [0.0, 0.1, 1.0, 2.0, 0.5]
    part = make("state_noise", std=deviations, keys=[STATE])
    noise = part.train()(batch)[STATE] - 1.0
    torch.testing.assert_close(noise.std((0, 1)), torch.tensor(deviations), atol=0.03, rtol=0)
    assert noise.mean().abs() < 0.02
    assert torch.equal(noise[..., 0], torch.zeros(20_000, 2))
    assert part(batch)["action"] is batch["action"]
    assert part.eval()(batch)[STATE] is batch[STATE]


def test_noise_of_another_width_is_refused() -> None:
    with pytest.raises(SpecError, match=f"2 deviations for the 5 dimensions of `{STATE}`") as caught:
        specs("state_noise", std=[0.1, 0.2])
    assert (caught.value.field, caught.value.source) == ("std", STATE)
    with pytest.raises(SpecError, match="`action` is not a state"):
        specs("state_noise", std=0.1, keys=["action"])


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_hides_all_states_of_a_sample(p: float) -> None:
    part = make("state_dropout", normalized(STATE, OTHER), p=p)
    batch = {STATE: torch.ones(5000, 2, 5), OTHER: torch.ones(5000, 2, 1)}
    changed = part.train()(batch)
    hidden = (changed[STATE] == 0.0).all(-1).all(-1)
    assert abs(hidden.float().mean() - p) < 0.03
    assert torch.equal(changed[STATE], (~hidden[:, None, None]).float().expand(-1, 2, 5))
    assert torch.equal(changed[OTHER], changed[STATE][..., :1])
    assert part.eval()(batch)[STATE] is batch[STATE]


def test_dropout_comes_after_normalizing() -> None:
    with pytest.raises(SpecError, match="is not normalized") as caught:
        specs("state_dropout", normalized(STATE))
    assert (caught.value.source, caught.value.trait) == (OTHER, "range")
    assert "after `normalize`" in caught.value.help


# --- rotation ----------------------------------------------------------------------------------------------------

AS_6D = {"key": "action", "start": 3, "source": "axis_angle", "target": "rotation_6d"}


def test_a_rotation_is_converted_in_its_place() -> None:
    part, batch = make("rotation", **AS_6D), numbers()
    batch["action"][..., 3:6] *= 0.5
    changed = part(batch)["action"]
    assert changed.shape == (4, 3, 10)
    assert torch.equal(changed[..., :3], batch["action"][..., :3])
    assert torch.equal(changed[..., 9:], batch["action"][..., 6:])
    expected = convert(batch["action"][..., 3:6], RotationForm("axis_angle"), RotationForm("rotation_6d"))
    assert torch.equal(changed[..., 3:9], expected)
    back = part.inverse({"action": changed})["action"]
    torch.testing.assert_close(back, batch["action"], atol=1e-5, rtol=0)
    found = specs("rotation", **AS_6D)["action"]
    assert (found.dims, found.range) == (("B", 3, 10), Range.CHANGED)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (RotationForm("euler", "xyz"), RotationForm("rotation_6d")),
        (RotationForm("quaternion", "xyzw"), RotationForm("matrix")),
        (RotationForm("quaternion", "wxyz"), RotationForm("euler", "ZYX")),
        (RotationForm("matrix"), RotationForm("axis_angle")),
    ],
)
def test_conventions_are_those_of_the_options(source: RotationForm, target: RotationForm) -> None:
    orders = {form.name: form.order for form in (source, target) if form.order}
    inputs = {STATE: Spec(Kind.STATE, ("B", 1, source.width + 1))}
    options = {"key": STATE, "start": 1, "source": source.name, "target": target.name, **orders}
    part = make("rotation", inputs, **options)
    vectors = torch.randn(6, 1, 3)
    state = torch.cat([torch.ones(6, 1, 1), convert(vectors, RotationForm("axis_angle"), source)], -1)
    changed = part({STATE: state})[STATE]
    expected = to_matrix(vectors, RotationForm("axis_angle"))
    torch.testing.assert_close(to_matrix(changed[..., 1:], target), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(part.inverse({STATE: changed})[STATE], state, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"key": "actions"}, "key", "is not a state or action"),
        ({"target": "axis_angle"}, "target", "is already `axis_angle`"),
        ({"start": 5}, "start", "`axis_angle` has 3 values, and `action` has 2 from dimension 5"),
        ({"source": "quaternion"}, "source", "conventions differ"),
        ({"target": "euler"}, "target", "conventions differ"),
        ({"quaternion": "wxyz"}, "quaternion", "`quaternion` is set, but no rotation"),
        ({"euler": "XYZ"}, "euler", "`euler` is set, but no rotation"),
    ],
)
def test_rotations_that_are_not_there(options: Any, field: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        specs("rotation", **{**AS_6D, **options})
    assert caught.value.field == field
    assert caught.value.label


def test_vectors_that_are_normalized_come_too_late() -> None:
    for name, options in (("rotation", AS_6D), ("sin_cos", {"keys": [STATE]})):
        with pytest.raises(SpecError, match="is normalized") as caught:
            specs(name, normalized(STATE, "action"), **options)
        assert caught.value.trait == "range"
        assert caught.value.help == "put it before `normalize`"
