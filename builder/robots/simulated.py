"""A simulated environment as a robot, and robots by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ...schemas.errors import SpecError
from ...schemas.paths import expanded
from ..simulation.base import Environment, make
from .base import Action, Observation, Robot
from .clock import Clock, SteppedClock


class SimulatedRobot(Robot):
    """An environment, whose time passes by its steps."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._clock = SteppedClock()
        self._observation: Observation = {}
        self._success = False
        self.name, self.fps, self.task = environment.name, environment.fps, environment.task
        self.cameras, self.max_steps = environment.cameras, environment.max_steps
        self.state_names = _names(environment, "state_names", "state", environment.state_dim)
        self.action_names = _names(environment, "action_names", "action", environment.action_dim)

    @property
    def clock(self) -> Clock:
        return self._clock

    def reset(self, seed: int) -> None:
        self._observation, self._success = self._environment.reset(seed), False

    def observe(self) -> Observation:
        return self._observation

    def act(self, action: Action) -> None:
        result = self._environment.step(action)
        self._observation, self._success = result.observation, result.success

    def stop(self) -> None:
        """Do nothing: no time passes between steps."""

    def close(self) -> None:
        self._environment.close()

    def success(self) -> bool:
        return self._success


def open_robot(name: str, *, image_size: int | None = None) -> Robot:
    """Return a robot: an environment, such as `metaworld/drawer-open-v3`, or `FILE.py:CLASS`.

    Args:
        name: Environment, or a Python file and the name of a Robot, or of a function that returns one, in it.
        image_size: Side of a simulator's images in pixels; None for no images.

    Raises:
        SpecError: The file or the name in it is missing, or is no robot.
        SimulatorError: The environment is unknown or cannot be opened.
    """
    file, colon, attribute = name.rpartition(":")
    if not colon:
        return SimulatedRobot(make(name, image_size=image_size or 96, render=image_size is not None))
    factory: Any = getattr(_module(expanded(file)), attribute, None)
    if not callable(factory):
        raise SpecError(
            f"{file} defines no `{attribute}`",
            help="name a subclass of `policysmith.Robot`, or a function that returns one",
        )
    robot = factory()
    if not isinstance(robot, Robot):
        raise SpecError(
            f"`{name}` returns a {type(robot).__name__}", help="derive it from `policysmith.Robot`"
        )
    return robot


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SpecError(f"{path} is not a Python file", help="write FILE.py:CLASS")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _names(environment: Environment, attribute: str, kind: str, size: int) -> tuple[str, ...]:
    return tuple(getattr(environment, attribute, None) or (f"{kind}_{index}" for index in range(size)))


__all__ = ["SimulatedRobot", "open_robot"]
