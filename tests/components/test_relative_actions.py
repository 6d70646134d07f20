"""Relative and delta actions against sums in double precision, relative poses against homogeneous matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policysmith.components.registry import TRANSFORMS
from policysmith.components.vectors.rotations import RotationForm, convert, to_matrix
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Range, Spec

STATE = "observation.state"
INPUTS = {STATE: Spec(Kind.STATE, ("B", 2, 4)), "action": Spec(Kind.ACTION, ("B", 5, 3))}
POSE = {STATE: Spec(Kind.STATE, ("B", 2, 9)), "action": Spec(Kind.ACTION, ("B", 5, 8))}
both = pytest.mark.parametrize("name", ["relative_actions", "delta_actions"])


def make(name: str, inputs: dict[str, Spec] = INPUTS, **options: Any) -> Any:
    part = TRANSFORMS.get(name)
    config = part.Config(type=name, **options)
    assert part.specs(config, inputs, {})["action"].range is Range.CHANGED
    return part(config, inputs, {})


def numbers(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        STATE: torch.randn(6, 2, 4, generator=random) * scale,
        "action": torch.randn(6, 5, 3, generator=random) * scale,
    }


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    options=st.sampled_from(
        [
            ({}, [0, 1, 2]),
            ({"absolute": [-1]}, [0, 1, None]),
            ({"absolute": [0]}, [None, 1, 2]),
            ({"state_dims": [3, 0, 1]}, [3, 0, 1]),
            ({"absolute": [1], "state_dims": [-1, 2]}, [3, None, 2]),
        ]
    ),
)
def test_actions_are_differences_and_come_back(seed: int, scale: float, options: Any) -> None:
    given_options, sources = options
    batch = numbers(seed, scale)
    action, state = (batch[key].double().numpy() for key in ("action", STATE))
    start = np.stack([np.zeros(6) if dim is None else state[:, -1, dim] for dim in sources], -1)
    relative = action - start[:, None]
    delta = np.diff(np.concatenate([start[:, None], action], 1), axis=1)
    kept = np.array([dim is None for dim in sources])
    for name, expected in (("relative_actions", relative), ("delta_actions", np.where(kept, action, delta))):
        part = make(name, **given_options)
        changed = part(batch)
        np.testing.assert_allclose(changed["action"].numpy(), expected, atol=1e-6 * scale)
        assert changed[STATE] is batch[STATE]
        back = part.inverse(changed)["action"]
        torch.testing.assert_close(back, batch["action"], atol=5e-6 * scale, rtol=1e-6)


@both
def test_the_inverse_finds_the_state_as_it_was(name: str) -> None:
    """Later transforms may normalize, hide or rename the state, and a robot gives no actions."""
    part, batch = make(name), numbers(0)
    deployed = part({STATE: batch[STATE]})
    predicted = part(batch)["action"]
    spoiled = {**deployed, STATE: torch.zeros(6, 2, 9), "action": predicted}
    torch.testing.assert_close(part.inverse(spoiled)["action"], batch["action"], atol=1e-5, rtol=0)
    del spoiled[STATE]
    torch.testing.assert_close(part.inverse(spoiled)["action"], batch["action"], atol=1e-5, rtol=0)


@both
def test_without_the_state_nothing_is_guessed(name: str) -> None:
    part, batch = make(name), numbers(0)
    assert part.needs(part.config, INPUTS) == [STATE]
    with pytest.raises(SpecError, match=f"needs `{STATE}` beside the action"):
        part({"action": batch["action"]})
    with pytest.raises(SpecError, match=f"cannot be undone without `{STATE}`"):
        part.inverse({"action": batch["action"]})


@both
@pytest.mark.parametrize(
    ("options", "field", "source", "message"),
    [
        ({"state": "observation.stat"}, "state", None, "is not a state"),
        ({"state": "action"}, "state", None, "is not a state"),
        ({"absolute": [3]}, "absolute.0", "action", "dimension 3 is not among the 3"),
        ({"absolute": [2, -1]}, "absolute.1", "action", "named twice"),
        ({"absolute": [0, 1, 2]}, "absolute", None, "no dimension of the action is relative"),
        ({"state_dims": [0, 1, 4]}, "state_dims.2", STATE, "dimension 4 is not among the 4"),
        ({"state_dims": [0, 1]}, "state_dims", "action", "2 dimensions of the state for 3 relative ones"),
    ],
)
def test_states_and_actions_that_do_not_correspond(
    name: str, options: Any, field: str, source: str | None, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make(name, **options)
    assert (caught.value.field, caught.value.source) == (field, source)


@both
def test_an_action_without_a_counterpart_in_the_state(name: str) -> None:
    narrow = {**INPUTS, STATE: Spec(Kind.STATE, ("B", 2, 2))}
    with pytest.raises(SpecError, match="dimension 2 of the action has no counterpart") as caught:
        make(name, narrow)
    assert caught.value.source == STATE
    assert "`absolute`" in caught.value.help
    make(name, narrow, absolute=[2])


@both
@pytest.mark.parametrize("key", [STATE, "action"])
def test_normalized_values_come_too_late(name: str, key: str) -> None:
    with pytest.raises(SpecError, match=f"`{key}` is normalized") as caught:
        make(name, {**INPUTS, key: replace(INPUTS[key], range=Range.NORMALIZED)})
    assert (caught.value.source, caught.value.trait) == (key, "range")


# --- relative_pose -----------------------------------------------------------------------------------------------


def homogeneous(position: Tensor, matrix: Tensor) -> Tensor:
    """Return transforms (..., 4, 4)."""
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=matrix.dtype).expand(*matrix.shape[:-2], 1, 4)
    return torch.cat([torch.cat([matrix, position[..., None]], -1), bottom], -2)


@pytest.mark.parametrize(
    ("form", "places"),
    [
        (RotationForm("axis_angle"), {}),
        (RotationForm("quaternion", "xyzw"), {}),
        (
            RotationForm("euler", "xyz"),
            {"position": 5, "rotation": 1, "state_position": 0, "state_rotation": 4},
        ),
    ],
)
def test_relative_poses_are_products_of_transforms(form: RotationForm, places: dict[str, int]) -> None:
    orders = {form.name: form.order} if form.order else {}
    part = make("relative_pose", POSE, representation=form.name, **orders, **places)
    at, turn = places.get("position", 0), places.get("rotation", 3)
    state_at, state_turn = places.get("state_position", at), places.get("state_rotation", turn)
    batch = {STATE: torch.randn(6, 2, 9).double(), "action": torch.randn(6, 5, 8).double()}
    for key, begin in ((STATE, state_turn), ("action", turn)):  # rotations in canonical values
        vectors = torch.randn(*batch[key].shape[:2], 3).double().clamp(-1.5, 1.5)
        batch[key][..., begin : begin + form.width] = convert(vectors, RotationForm("axis_angle"), form)

    def pose(values: Tensor, at: int, turn: int) -> Tensor:
        return homogeneous(values[..., at : at + 3], to_matrix(values[..., turn : turn + form.width], form))

    expected = pose(batch[STATE][:, -1:], state_at, state_turn).inverse() @ pose(batch["action"], at, turn)
    floats = {key: value.float() for key, value in batch.items()}
    changed = part(floats)
    found = pose(changed["action"].double(), at, turn)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(part.inverse(changed)["action"], floats["action"], atol=5e-6, rtol=0)
    pose_dims = {*range(at, at + 3), *range(turn, turn + form.width)}
    others = [dim for dim in range(8) if dim not in pose_dims]
    assert torch.equal(changed["action"][..., others], floats["action"][..., others])


def test_a_policy_that_predicts_no_motion_stays() -> None:
    part = make("relative_pose", POSE, representation="quaternion", quaternion="wxyz")
    state = torch.randn(3, 2, 9)
    state[..., 3:7] = convert(
        torch.randn(3, 2, 3), RotationForm("axis_angle"), RotationForm("quaternion", "wxyz")
    )
    still = torch.zeros(3, 5, 8)
    still[..., 3] = 2.0  # a quaternion of another length
    restored = part.inverse({**part({STATE: state}), "action": still})["action"]
    torch.testing.assert_close(restored[..., :7], state[:, -1:, :7].expand(-1, 5, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "field", "source"),
    [
        ({"representation": "quaternion"}, "representation", None),
        ({"euler": "xyz"}, "euler", None),
        ({"rotation": 6}, "rotation", "action"),
        ({"rotation": 2}, "rotation", "action"),
        ({"state_rotation": 7}, "state_rotation", STATE),
        ({"state_position": 2}, "rotation", STATE),
        ({"position": None, "state_position": 0}, "state_position", None),
        ({"state": "observation.pose"}, "state", None),
    ],
)
def test_poses_that_are_not_there(options: Any, field: str, source: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        make("relative_pose", POSE, **{"representation": "axis_angle", **options})
    assert (caught.value.field, caught.value.source) == (field, source)
    assert caught.value.label
