"""Values that are not finite, or absurd beside those of training, never reach a robot."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from policysmith.builder import BasePolicyModel, Builder
from policysmith.builder.policy.acting.ranges import Ranges
from policysmith.schemas.errors import SpecError, WeightsError

STATE = "observation.state"


@pytest.fixture
def policy(tiny: dict[str, Any]) -> BasePolicyModel:
    """A policy that reads the state alone."""
    del tiny["policy"]["backbones"]["vision"]
    tiny["transforms"] = [{"type": "normalize"}]
    return Builder.from_recipe(tiny).build()


@pytest.fixture
def state(policy: BasePolicyModel) -> torch.Tensor:
    """The mean state of the training episodes."""
    return torch.tensor(policy.content["statistics"][STATE]["mean"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e28, -1e28, 1e300, 1e6])
@pytest.mark.parametrize("dim", [0, 3])
def test_an_observation_that_is_not_finite_or_absurd_is_refused(
    value: float, dim: int, policy: BasePolicyModel, state: torch.Tensor
) -> None:
    state = state.double()
    state[dim] = value
    for act in (
        lambda: policy.select_action({STATE: state}),
        lambda: policy.chunk({STATE: state[None]}),
    ):
        with pytest.raises(SpecError, match=rf"`{STATE}` is .* dimension {dim}"):
            act()
    policy.select_action({STATE: torch.tensor(policy.content["statistics"][STATE]["mean"])})


def test_observations_between_looks_are_held_to_the_same(
    policy: BasePolicyModel, state: torch.Tensor
) -> None:
    policy.select_action({STATE: state})
    with pytest.raises(SpecError, match="not finite"):
        policy.select_action({STATE: state * float("nan")})


def test_a_batch_for_inference_is_held_to_it_too(policy: BasePolicyModel, state: torch.Tensor) -> None:
    batch = torch.stack([state, state])[:, None]
    assert policy.inference({STATE: batch}).isfinite().all()
    batch[1, 0, 2] = float("nan")
    with pytest.raises(SpecError, match=f"`{STATE}` is not finite in dimension 2"):
        policy.inference({STATE: batch})
    batch[1, 0, 2] = 1e28
    with pytest.raises(SpecError, match=rf"`{STATE}` is 1e\+28 in dimension 2"):
        policy.inference({STATE: batch})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e28])
def test_broken_weights_give_no_action(value: float, policy: BasePolicyModel, state: torch.Tensor) -> None:
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.fill_(value)
    for act in (
        lambda: policy.select_action({STATE: state}),
        lambda: policy.inference({STATE: state[None, None]}),
    ):
        with pytest.raises(SpecError, match=r"`action` is"):
            act()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_loaded(
    value: float, policy: BasePolicyModel, tmp_path: Path
) -> None:
    name, parameter = list(policy.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    policy.save_pretrained(tmp_path / "policy")
    with pytest.raises(WeightsError, match=f"not finite: {name}"):
        AutoModel.from_pretrained(tmp_path / "policy")


def test_unusual_values_are_told_once(
    policy: BasePolicyModel, state: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            policy.select_action({STATE: state * 57.0})
    (said,) = [record.message for record in caplog.records if STATE in record.message]
    assert said.endswith("(logged once)")


def test_actions_are_clamped_to_the_range_of_training_where_asked(
    policy: BasePolicyModel, state: torch.Tensor
) -> None:
    held = policy.content["statistics"]["action"]
    low, high = torch.tensor(held["min"]), torch.tensor(held["max"])
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.mul_(20.0)
    policy.reset()
    free = policy.select_action({STATE: state})
    policy.reset()
    clamped = policy.select_action({STATE: state}, clamp=True)
    assert not torch.equal(free, clamped)
    assert torch.equal(clamped, free.clamp(low, high))
    for wrong in ("yes", 1, None):
        with pytest.raises(TypeError, match="clamp must be True or False"):
            policy.select_action({STATE: state}, clamp=wrong)


def test_without_known_ranges_nothing_is_clamped() -> None:
    ranges = Ranges({"action": {"mean": [0.0], "std": [1.0]}})
    ranges.check("action", torch.tensor([1e9]), "")
    with pytest.raises(SpecError, match="no range of `action`"):
        ranges.clamp("action", torch.zeros(1))


def test_dimensions_that_rested_in_training_may_move_a_little(caplog: pytest.LogCaptureFixture) -> None:
    ranges = Ranges({STATE: {"min": [0.0, 2.0], "max": [0.0, 2.0]}})
    ranges.check(STATE, torch.tensor([0.1, 2.1]), "")
    assert not caplog.records
    with pytest.raises(SpecError, match="dimension 1, which ranged from 2 to 2"):
        ranges.check(STATE, torch.tensor([0.0, 1e5]), "")
