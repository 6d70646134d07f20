"""The suite `point`: a point that is driven to a colored target in the plane, drawn in NumPy."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policysmith.builder.simulation.base import Action, Image, Observation, StepResult
from policysmith.schemas.errors import SimulatorError

SPEED = 0.4
"""Distance of a step at full action, in meters."""
REACHED = 0.15
"""Distance that counts as success, in meters."""


def environments() -> tuple[str, ...]:
    """Return the names of the environments, without the suite."""
    return ("reach",)


def make(name: str, *, image_size: int, render: bool) -> Reach:
    """Open an environment."""
    return Reach(image_size, render)


def describe(name: str) -> type[Reach]:
    """Return the class of an environment."""
    return Reach


class Reach:
    """Drive a point to a target in the square [-1, 1] x [-1, 1]; the target is seen, not told.

    An action is the velocity (2,) in units of `SPEED` a step.
    """

    name = "point/reach"
    action_dim = state_dim = 2
    cameras = ("top",)
    fps = 10
    max_steps = 60
    task = "reach the red target"
    robot_type = "point"
    state_names = action_names = ("x", "y")

    def __init__(self, image_size: int, render: bool) -> None:
        self._size, self._render, self._step = image_size, render, self.max_steps
        self._position = self._target = np.zeros(2)

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed`."""
        random = np.random.default_rng(seed)
        self._position, self._target = random.uniform(-0.9, 0.9, (2, 2))
        self._step = 0
        return self._observe()

    def step(self, action: Action) -> StepResult:
        """Move by an action (2,)."""
        if np.shape(action) != (2,) or not np.isfinite(action).all():
            raise SimulatorError(f"an action of `{self.name}` is two finite numbers, not {action!r}")
        if self._step >= self.max_steps:
            raise SimulatorError("the episode is over; call `reset`")
        self._step += 1
        self._position = np.clip(self._position + SPEED * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        success = float(np.linalg.norm(self._position - self._target)) < REACHED
        return StepResult(self._observe(), success, self._step >= self.max_steps)

    def render(self) -> Image:
        """Return the view from above (H, W, 3): the target red, the point blue."""
        if not self._render:
            raise SimulatorError("the environment was made with `render=False`")
        image = np.full((self._size, self._size, 3), 255, np.uint8)
        for place, color in ((self._target, (220, 40, 40)), (self._position, (40, 40, 220))):
            column, row = ((place + 1.0) / 2.0 * (self._size - 1)).round().astype(int)
            radius = max(2, self._size // 16)
            image[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1] = (
                color
            )
        return image

    def close(self) -> None:
        """Nothing is held."""

    def layout(self) -> NDArray[np.float64]:
        """Return start and target drawn by the seed, in meters."""
        return np.concatenate([self._position, self._target])

    def expert_action(self) -> Action:
        """Return an action towards the target, slower the closer it is."""
        return (0.5 * (self._target - self._position)).astype(np.float32)

    def provenance(self) -> dict[str, Any]:
        """Return the version of this package."""
        return {"versions": {"policysmith-example": version("policysmith-example")}}

    def _observe(self) -> Observation:
        observed: Observation = {"observation.state": self._position.astype(np.float32), "task": self.task}
        if self._render:
            observed["observation.images.top"] = self.render().transpose(2, 0, 1).copy()
        return observed
