"""Meta-World episodes: determined by their seed, and seen the right way up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from policysmith.builder.simulation.base import Demonstrator, make
from policysmith.builder.simulation.metaworld import MetaWorldEnvironment
from policysmith.builder.simulation.metaworld_tasks import INSTRUCTIONS
from policysmith.builder.simulation.seeds import demonstration_seed, evaluation_seed
from policysmith.schemas.errors import SimulatorError

pytestmark = pytest.mark.sim

DRAWER = "metaworld/drawer-open-v3"
IMAGE = "observation.images.corner2"


def opened(name: str, **options: Any) -> MetaWorldEnvironment:
    environment = make(name, **options)
    assert isinstance(environment, MetaWorldEnvironment)
    return environment


@pytest.fixture(scope="module")
def drawer() -> Iterator[MetaWorldEnvironment]:
    with closing(opened(DRAWER, image_size=64)) as environment:
        yield environment


def follow_expert(environment: MetaWorldEnvironment, steps: int) -> None:
    for _ in range(steps):
        environment.step(environment.expert_action())


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


def test_what_an_environment_promises(drawer: MetaWorldEnvironment) -> None:
    observation = drawer.reset(0)
    assert isinstance(drawer, Demonstrator)
    assert (drawer.action_dim, drawer.state_dim, drawer.fps, drawer.max_steps) == (4, 4, 80, 500)
    assert drawer.cameras == ("corner2",)
    assert observation.keys() == {IMAGE, "observation.state", "task"}
    assert observation["task"] == drawer.task == "Open the drawer"
    assert observation[IMAGE].shape == (3, 64, 64)
    assert observation[IMAGE].dtype == np.uint8
    assert observation["observation.state"].shape == (4,)
    assert observation["observation.state"].dtype == np.float32
    assert drawer.render().shape == (64, 64, 3)
    np.testing.assert_array_equal(drawer.render().transpose(2, 0, 1), observation[IMAGE])


@pytest.mark.parametrize("name", [DRAWER, "metaworld/push-v3", "metaworld/door-open-v3"])
def test_a_seed_alone_determines_an_episode(name: str) -> None:
    with closing(opened(name, image_size=64)) as fresh, closing(opened(name, image_size=64)) as used:
        used.reset(7)
        follow_expert(used, 60)
        first, second = fresh.reset(3), used.reset(3)
        assert_same(first, second)
        np.testing.assert_array_equal(fresh.layout(), used.layout())
        for _ in range(20):
            action = fresh.expert_action()
            np.testing.assert_array_equal(action, used.expert_action())
            assert_same(fresh.step(action).observation, used.step(action).observation)


@pytest.mark.parametrize(
    "task", ["assembly-v3", "box-close-v3", "faucet-open-v3", "hammer-v3", "window-open-v3"]
)
def test_history_leaves_no_trace_in_other_tasks(task: str) -> None:
    with (
        closing(opened(f"metaworld/{task}", render=False)) as fresh,
        closing(opened(f"metaworld/{task}", render=False)) as used,
    ):
        used.reset(8)
        follow_expert(used, 40)
        fresh.reset(2)
        used.reset(2)
        for _ in range(30):
            action = used.expert_action()
            np.testing.assert_array_equal(fresh.expert_action(), action)
            assert_same(fresh.step(action).observation, used.step(action).observation)


@pytest.mark.parametrize("name", [DRAWER, "metaworld/push-v3"])
def test_demonstrations_and_evaluations_meet_different_goals(name: str) -> None:
    with closing(opened(name, render=False)) as environment:
        layouts = []
        for index in range(12):
            for seed in (demonstration_seed(0, index), evaluation_seed(0, index)):
                environment.reset(seed)
                layouts.append(environment.layout())
    distances = np.abs(np.array(layouts)[:, None] - np.array(layouts)[None]).max(-1)
    assert distances[~np.eye(len(layouts), dtype=bool)].min() > 1e-6
    assert np.ptp(np.array(layouts)[:, 0]) > 0.1


def test_the_first_image_shows_the_drawer_where_it_is(drawer: MetaWorldEnvironment) -> None:
    for seed in range(3):
        before = drawer.reset(seed)[IMAGE]
        drawer._mujoco.mj_forward(drawer._model, drawer._data)
        np.testing.assert_array_equal(drawer.render().transpose(2, 0, 1), before)
        np.testing.assert_allclose(drawer._data.body("drawer").xpos, drawer.layout())


def test_neither_state_nor_dimension_holds_the_goal_of_push() -> None:
    with closing(opened("metaworld/push-v3", render=False)) as environment:
        states = [environment.reset(seed)["observation.state"] for seed in range(6)]
        assert np.ptp(np.array(states), axis=0).max() < 1e-6
        assert len({tuple(environment.layout()) for seed in range(6) if environment.reset(seed)}) == 6


def test_the_image_is_upright_and_shows_the_green_drawer(drawer: MetaWorldEnvironment) -> None:
    drawer.reset(0)
    image = drawer.render().astype(int)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    drawer_rows, drawer_columns = np.nonzero((green > red + 40) & (green > blue + 40))
    arm_rows, arm_columns = np.nonzero((red > green + 60) & (red > blue + 60))
    assert len(drawer_rows) > 60
    assert drawer_columns.mean() > arm_columns.mean(), "the arm reaches from the left"
    assert arm_rows.min() < drawer_rows.min(), "the arm stands higher than the drawer"
    assert (image[:10, 40:] == 0).all(), "above the table is nothing"


def test_the_image_follows_the_drawer(drawer: MetaWorldEnvironment) -> None:
    columns = {}
    for seed in range(8):
        drawer.reset(seed)
        image = drawer.render().astype(int)
        green = (image[..., 1] > image[..., 0] + 40) & (image[..., 1] > image[..., 2] + 40)
        columns[float(drawer.layout()[0])] = np.nonzero(green)[0].mean()
    ordered = [columns[x] for x in sorted(columns)]
    assert abs(np.corrcoef(sorted(columns), ordered)[0, 1]) > 0.95


def test_live_environments_do_not_corrupt_each_other(drawer: MetaWorldEnvironment) -> None:
    expected = drawer.reset(4)[IMAGE]
    others = [opened("metaworld/push-v3", image_size=64), opened(DRAWER, image_size=96)]
    for other in others:
        other.reset(5)
    np.testing.assert_array_equal(drawer.render().transpose(2, 0, 1), expected)
    others[0].close()
    np.testing.assert_array_equal(drawer.render().transpose(2, 0, 1), expected)
    assert others[1].reset(5)[IMAGE].max() > 0
    others[1].close()
    np.testing.assert_array_equal(drawer.reset(4)[IMAGE], expected)


def test_the_expert_succeeds_within_the_limit(drawer: MetaWorldEnvironment) -> None:
    drawer.reset(1)
    succeeded = []
    for _ in range(120):
        action = drawer.expert_action()
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        succeeded.append(drawer.step(action).success)
    assert 40 < succeeded.index(True) < 110


def test_actions_out_of_range_act_as_if_clipped(drawer: MetaWorldEnvironment) -> None:
    states = []
    for scale in (1.0, 30.0):
        drawer.reset(0)
        action = np.array([scale, -scale, 0.0, -scale], dtype=np.float32)
        states.append([drawer.step(action).observation["observation.state"] for _ in range(5)])
    np.testing.assert_array_equal(states[0], states[1])


def test_the_step_limit_ends_an_episode_and_only_once() -> None:
    with closing(opened(DRAWER, render=False)) as environment:
        environment.reset(0)
        still = np.zeros(4, dtype=np.float32)
        done = [environment.step(still).done for _ in range(environment.max_steps)]
        assert done.index(True) == 499
        with pytest.raises(SimulatorError, match="call reset"):
            environment.step(still)
        environment.reset(0)
        assert not environment.step(still).done


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 4)), np.array([0, 0, 0, np.nan])])
def test_a_wrong_action_is_refused(drawer: MetaWorldEnvironment, action: np.ndarray) -> None:
    drawer.reset(0)
    with pytest.raises(SimulatorError, match="finite actions of shape"):
        drawer.step(action)


def test_acting_before_reset_is_refused() -> None:
    with (
        closing(opened(DRAWER, render=False)) as environment,
        pytest.raises(SimulatorError, match="call reset"),
    ):
        environment.step(np.zeros(4, dtype=np.float32))


def test_blind_environments_see_no_image_and_move_alike(drawer: MetaWorldEnvironment) -> None:
    with closing(opened(DRAWER, render=False)) as blind:
        observation = blind.reset(2)
        assert observation.keys() == {"observation.state", "task"}
        seen = drawer.reset(2)
        for _ in range(15):
            np.testing.assert_array_equal(observation["observation.state"], seen["observation.state"])
            action = drawer.expert_action()
            observation, seen = blind.step(action).observation, drawer.step(action).observation
        with pytest.raises(SimulatorError, match="render=False"):
            blind.render()


def test_closing_twice_is_allowed() -> None:
    environment = opened(DRAWER, image_size=32)
    environment.close()
    environment.close()


def test_an_image_has_pixels() -> None:
    with pytest.raises(SimulatorError, match="positive number of pixels"):
        make(DRAWER, image_size=0)


def test_every_task_has_an_environment_and_an_expert() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len(set(INSTRUCTIONS.values())) == 50
