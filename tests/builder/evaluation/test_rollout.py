"""One episode at a time: what the environment is given, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from policysmith.builder.evaluation.rollout import Rollout, roll_out
from policysmith.builder.planning.checks.compatibility import Needs
from policysmith.schemas.errors import SimulatorError

from .reach import ReachEnvironment

MakePolicy = Callable[..., Any]
SEEING = Needs({"top": (16, 16)}, {"observation.state": 4}, 2)


def run(
    policy: Any, world: ReachEnvironment, seed: int = 2, needs: Needs = SEEING, film_every: int | None = None
) -> Rollout:
    return roll_out(policy, world, index=0, seed=seed, needs=needs, film_every=film_every)


@pytest.mark.parametrize("execute", [1, 3, None])
def test_the_environment_gets_exactly_the_predicted_actions_in_order(
    make_policy: MakePolicy, execute: int | None
) -> None:
    policy, world = make_policy("count", execute=execute), ReachEnvironment(16, True)
    rollout = run(policy, world)
    run_length = execute or 4
    expected = [(1 + i // run_length) / 10.0 + (i % run_length) / 100.0 for i in range(rollout.episode.steps)]
    assert [action[0] for action in world.actions] == pytest.approx(expected, abs=1e-6)
    assert len(policy.looks) == -(-rollout.episode.steps // run_length)


def test_the_policy_looks_at_the_latest_observation_and_only_at_what_it_needs(
    make_policy: MakePolicy,
) -> None:
    policy, world = make_policy("count", execute=3), ReachEnvironment(16, True)
    run(policy, world)
    for look, seen in zip(policy.looks, world.seen[::3], strict=False):
        assert np.array_equal(look["observation.state"][0, 0], seen["observation.state"])
        assert "observation.environment_state" not in look
        assert look["action"].isnan().all()


def test_an_episode_ends_at_the_first_success_or_at_the_limit(make_policy: MakePolicy) -> None:
    world = ReachEnvironment(16, True)
    won = run(make_policy("expert"), world).episode
    assert won.success
    assert won.steps == len(world.actions) < world.max_steps
    lost = run(make_policy("random"), ReachEnvironment(16, True), seed=4).episode
    assert not lost.success
    assert lost.steps == world.max_steps


def test_episodes_do_not_know_of_each_other(make_policy: MakePolicy) -> None:
    policy, world = make_policy("expert", noise=0.7), ReachEnvironment(16, True)
    alone = run(policy, world, seed=6)
    before = [action.tolist() for action in world.actions]
    world.actions.clear()
    run(policy, world, seed=8)
    world.actions.clear()
    assert run(policy, world, seed=6) == alone
    assert [action.tolist() for action in world.actions] == before


def test_the_expert_beats_chance(make_policy: MakePolicy) -> None:
    outcomes = {
        behaviour: [
            run(make_policy(behaviour), ReachEnvironment(16, True), seed=s).episode.success for s in range(20)
        ]
        for behaviour in ("expert", "random")
    }
    assert all(outcomes["expert"])
    assert sum(outcomes["random"]) < 10


def test_frames_are_kept_at_every_nth_step_and_at_the_end(make_policy: MakePolicy) -> None:
    rollout = run(make_policy("expert"), ReachEnvironment(16, True), film_every=3)
    assert len(rollout.frames) == -(-rollout.episode.steps // 3) + 1
    assert rollout.frames[0].shape == (16, 16, 3)
    assert rollout.frames[0].dtype == np.uint8


def test_a_command_that_is_no_number_is_told_with_its_place(make_policy: MakePolicy) -> None:
    with pytest.raises(SimulatorError, match=r"episode 0 \(seed 2\), step 0: `action` is not finite"):
        run(make_policy("broken"), ReachEnvironment(16, True))
