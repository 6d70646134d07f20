"""A point that must reach a goal on a plane: an environment without a simulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from policysmith.builder.simulation.base import Action, Image, Observation, StepResult


class ReachEnvironment:
    """State: position and goal (4,); action: a step of at most 0.1 in each direction (2,)."""

    name = "plane/reach"
    action_dim = 2
    state_dim = 4
    cameras = ("top",)
    fps = 40
    max_steps = 30
    task = "Reach the goal"

    def __init__(self, image_size: int, render: bool) -> None:
        self._size, self._render = image_size, render
        self.actions: list[Any] = []
        self.resets: list[int] = []
        self.seen: list[Observation] = []

    def reset(self, seed: int) -> Observation:
        generator = np.random.default_rng(seed)
        self._position, self._goal = generator.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.resets.append(seed)
        return self._observe()

    def step(self, action: Action) -> StepResult:
        self.actions.append(np.array(action))
        self._position = self._position + 0.1 * np.clip(action, -1.0, 1.0)
        success = bool(np.abs(self._position - self._goal).max() < 0.1)
        return StepResult(self._observe(), success, done=False)

    def render(self) -> Image:
        image = np.zeros((self._size, self._size, 3), dtype=np.uint8)
        row, column = np.clip((self._position + 1.0) / 2.0 * self._size, 0, self._size - 1).astype(int)
        image[row, column] = 255
        return image

    def close(self) -> None:
        """Nothing to free."""

    def _observe(self) -> Observation:
        observation: Observation = {
            "observation.state": np.concatenate([self._position, self._goal]).astype(np.float32),
            "observation.environment_state": np.zeros(3, dtype=np.float32),
            "task": self.task,
        }
        if self._render:
            observation["observation.images.top"] = np.moveaxis(self.render(), -1, 0)
        self.seen.append(observation)
        return observation


class ThreeJoints(ReachEnvironment):
    """One that fits no policy of these tests."""

    name = "plane/three-joints"
    action_dim = 3
    state_dim = 6
    cameras = ("wrist",)


def make_reach(image_size: int, render: bool) -> ReachEnvironment:
    """Make the environment in a worker."""
    return ReachEnvironment(image_size, render)


def make_three_joints(image_size: int, render: bool) -> ReachEnvironment:
    """Make the environment in a worker."""
    return ThreeJoints(image_size, render)
