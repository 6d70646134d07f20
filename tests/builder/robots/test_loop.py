"""The control loop, with robots and clocks of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from policysmith.builder.data.lerobot.info import inspect
from policysmith.builder.robots.base import Action, Observation, Robot
from policysmith.builder.robots.clock import Clock, SteppedClock, WallClock
from policysmith.builder.robots.loop import RobotEpisode, drive
from policysmith.builder.robots.recording import Recording
from policysmith.schemas.errors import DatasetError, Interrupted, RobotError, SpecError


class Arm(Robot):
    """Two joints that obey at once; the task is done after `goal` steps."""

    name, fps, task = "arm", 50, "Reach"
    cameras, state_names, action_names = ("front",), ("a", "b"), ("a", "b")
    limits = (np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
    max_steps = 6

    def __init__(self, clock: Clock | None = None, goal: int | None = None) -> None:
        self._clock, self.goal = clock or SteppedClock(), goal
        self.sent: list[list[float]] = []
        self.stopped = 0
        self.by_hand: dict[int, list[float]] = {}
        self.released_at: int | None = None

    @property
    def clock(self) -> Clock:
        return self._clock

    def reset(self, seed: int) -> None:
        self.sent = []

    def observe(self) -> Observation:
        state = np.full(2, len(self.sent), np.float32)
        return {
            "observation.images.front": np.full((3, 32, 32), len(self.sent), np.uint8),
            "observation.state": state,
        }

    def act(self, action: Action) -> None:
        self.sent.append(action.tolist())

    def stop(self) -> None:
        self.stopped += 1

    def success(self) -> bool | None:
        return None if self.goal is None else len(self.sent) >= self.goal

    def intervention(self) -> Action | None:
        given = self.by_hand.get(len(self.sent))
        return None if given is None else np.array(given, np.float32)

    def enabled(self) -> bool:
        return self.released_at is None or len(self.sent) < self.released_at


class Constant:
    """Always the same action, after some thought."""

    def __init__(self, value: float = 0.5, think: Callable[[], Any] = lambda: None) -> None:
        self.value, self.think, self.resets, self.calls = value, think, 0, 0

    def select_action(self, observation: Any, generator: Any = None, *, clamp: bool = False) -> torch.Tensor:
        self.calls += 1
        self.think()
        return torch.full((2,), self.value)

    def reset(self) -> None:
        self.resets += 1


def test_an_episode_ends_by_success_or_the_step_limit() -> None:
    arm = Arm(goal=3)
    assert drive(arm, Constant(), seed=7) == RobotEpisode(0, 7, "success", 3, 0, 0, 0, 0)
    assert arm.stopped == 1
    assert drive(Arm(), Constant()).end == "step limit"
    assert drive(Arm(), Constant(), max_steps=2).steps == 2


def test_actions_are_clamped_to_the_limits_of_the_robot() -> None:
    arm = Arm(goal=2)
    assert drive(arm, Constant(3.0)).clamped == 2
    assert arm.sent == [[1.0, 1.0]] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_is_never_sent(value: float) -> None:
    arm = Arm()
    with pytest.raises(RobotError, match="finite"):
        drive(arm, Constant(value))
    assert arm.sent == []
    assert arm.stopped == 1


def test_late_steps_are_dropped_and_not_caught_up() -> None:
    clock = SteppedClock()
    moments: list[float] = []

    def think() -> None:
        moments.append(clock.now())
        if len(moments) == 2:
            clock.wait_until(clock.now() + 0.07)  # 3.5 periods

    assert drive(Arm(clock), Constant(think=think)).dropped == 2
    assert moments == pytest.approx([0.0, 0.02, 0.09, 0.1, 0.12, 0.14])


def test_the_dead_mans_switch_stops_the_robot() -> None:
    arm = Arm()
    arm.released_at = 2
    episode = drive(arm, Constant())
    assert (episode.end, episode.steps, arm.stopped) == ("released", 2, 1)


def test_the_watchdog_stops_a_robot_without_actions_and_late_ones_are_not_sent() -> None:
    arm = Arm(WallClock(), goal=3)
    stopped = threading.Event()
    arm.stop = stopped.set  # type: ignore[method-assign]

    def think() -> None:
        if actor.calls == 2:
            assert stopped.wait(10)
            actor.value = 0.9
        else:
            actor.value = 0.5

    actor = Constant(think=think)
    episode = drive(arm, actor, watchdog=0.15)
    assert (episode.stalls, episode.steps) == (1, 3)
    assert arm.sent == [[0.5, 0.5]] * 3
    assert actor.resets == 2  # its chunk is out of date


def test_a_policy_that_is_always_too_slow_is_given_up() -> None:
    arm = Arm(WallClock())
    with pytest.raises(RobotError, match="watchdog"):
        drive(arm, Constant(think=lambda: time.sleep(0.05)), watchdog=0.01)
    assert arm.sent == []


def test_what_the_policy_refuses_is_an_error_of_the_robot() -> None:
    def refuse() -> None:
        raise SpecError("no camera")

    with pytest.raises(RobotError, match="step 0: no camera"):
        drive(Arm(), Constant(think=refuse))


def test_recordings_mark_success_and_what_people_did(tmp_path: Path) -> None:
    arm = Arm(goal=4)
    arm.by_hand = {1: [0.1, 0.2], 2: [0.3, 0.4]}
    actor = Constant()
    with Recording(tmp_path / "recorded", arm) as recording:
        episode = drive(arm, actor, recording=recording)
        drive(Arm(), Constant(), max_steps=2, recording=recording)
    assert (episode.interventions, actor.calls, actor.resets) == (2, 2, 2)
    info = inspect(tmp_path / "recorded")
    assert (info.episode_lengths, info.fps, info.cameras) == ((4, 2), 50, {"front": (32, 32)})
    table = pq.read_table(next((tmp_path / "recorded" / "data").rglob("*.parquet"))).to_pydict()
    actions = [[0.5, 0.5], [0.1, 0.2], [0.3, 0.4], *[[0.5, 0.5]] * 3]
    np.testing.assert_allclose(table["action"], actions, rtol=1e-6)
    assert np.ravel(table["intervention"]).tolist() == [0, 1, 1, 0, 0, 0]
    assert np.ravel(table["next.success"]).tolist() == [0, 0, 0, 1, 0, 0]
    assert np.array(table["observation.state"])[:, 0].tolist() == [0, 1, 2, 3, 0, 1]


def test_a_signal_keeps_the_episodes_that_were_complete(tmp_path: Path) -> None:
    arm = Arm(goal=2)

    def interrupt() -> None:
        if len(arm.sent) == 1:
            raise Interrupted(2)

    def record(name: str, *actors: Constant) -> None:
        with Recording(tmp_path / name, arm) as recording:
            for actor in actors:
                drive(arm, actor, recording=recording)

    with pytest.raises(Interrupted):
        record("recorded", Constant(), Constant(think=interrupt))
    assert inspect(tmp_path / "recorded").episode_lengths == (2,)
    with pytest.raises(Interrupted):
        record("none", Constant(think=interrupt))
    assert not (tmp_path / "none").exists()
    with pytest.raises(DatasetError, match="not empty"):
        Recording(tmp_path / "recorded", arm)
