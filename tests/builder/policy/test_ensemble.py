"""Temporal ensembling, against the formula of ACT's paper over everything that was predicted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.policy.acting.ensemble import Ensemble


@given(st.integers(1, 5), st.integers(1, 9), st.floats(-0.5, 0.5), st.integers(0, 2**31))
def test_actions_are_means_of_all_predictions(horizon: int, steps: int, decay: float, seed: int) -> None:
    chunks = torch.randn(steps, horizon, 2, generator=torch.Generator().manual_seed(seed)).double()
    ensemble = Ensemble()
    for now in range(steps):
        acted = ensemble.add(chunks[now], decay)
        made = [chunks[then, now - then].tolist() for then in range(now + 1) if now - then < horizon]
        weights = [math.exp(-decay * i) for i in range(len(made))]
        for dim in range(2):
            mean = sum(w * action[dim] for w, action in zip(weights, made, strict=True)) / sum(weights)
            assert acted[dim].item() == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("decay", [1e3, 1e308, -1e3, -1e308])
def test_a_steep_decay_leaves_one_prediction(decay: float) -> None:
    ensemble = Ensemble()
    acted = [ensemble.add(torch.full((3, 1), float(now)), decay).item() for now in range(4)]
    assert acted == ([0.0, 0.0, 0.0, 1.0] if decay > 0 else [0.0, 1.0, 2.0, 3.0])


def test_a_policy_averages_until_it_is_reset(
    tiny: dict[str, Any], observation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder.from_recipe(tiny).override({"policy.execute": 1, "policy.ensemble": 0.3})
    policy = builder.build()
    assert isinstance(policy, RecipePolicy)
    chunks = iter(torch.arange(5.0)[:, None, None].expand(-1, 4, 4) ** 2)
    monkeypatch.setattr(policy, "predict", lambda samples, generator: next(chunks)[None])
    acted = [policy.select_action(observation)[0].item() for _ in range(3)]
    weights = [1.0, math.exp(-0.3), math.exp(-0.6)]
    assert acted[0] == 0.0
    assert acted[1] == pytest.approx(weights[1] / sum(weights[:2]))
    assert acted[2] == pytest.approx((weights[1] + 4.0 * weights[2]) / sum(weights))
    policy.reset()
    assert policy.select_action(observation)[0] == 9.0
