"""What every simulator looks like to the recorder and to the evaluation.

    environment = make("metaworld/drawer-open-v3", image_size=96)
    observation = environment.reset(seed=0)
    result = environment.step(action)

A name is `<suite>/<environment>`. Nothing of a simulator is imported before its suite is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...schemas.errors import SimulatorError

Observation = dict[str, Any]
"""LeRobot's flat keys: `observation.images.<camera>` uint8 (3, H, W), absent without rendering;
`observation.state` float32 (S,); `task`, the instruction, str."""

Action = NDArray[np.float32]
Image = NDArray[np.uint8]

SUITES = {"metaworld": "metaworld"}
"""Suite name -> the module of this package that offers `environments()` and `make(...)`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What follows an action. `done` says that the step limit is reached; success does not end an episode."""

    observation: Observation
    success: bool
    done: bool


@runtime_checkable
class Environment(Protocol):
    """One robot in one simulated task.

    `action_dim` A and `state_dim` S are vector sizes, `fps` control steps per simulated second, `max_steps`
    the steps an episode may take, `task` the instruction, `cameras` the names images come under. One that also has
    `state_names` and `action_names`, a name a dimension, is mapped to the order in which a policy knows these.
    """

    name: str
    action_dim: int
    state_dim: int
    cameras: tuple[str, ...]
    fps: int
    max_steps: int
    task: str

    def reset(self, seed: int) -> Observation:
        """Begin the episode that `seed` alone determines, whatever happened before."""
        ...

    def step(self, action: Action) -> StepResult:
        """Apply an action (A,) in [-1, 1] for one control step; values outside are clipped.

        Raises:
            SimulatorError: the action has another shape or is not finite, or the episode is over.
        """
        ...

    def render(self) -> Image:
        """The first camera's view now, uint8 (H, W, 3).

        Raises:
            SimulatorError: the environment was made with `render=False`.
        """
        ...

    def close(self) -> None:
        """Free graphics memory. Closing twice is allowed."""
        ...


@runtime_checkable
class Demonstrator(Environment, Protocol):
    """An environment that also knows how its task is done.

    `state_names` and `action_names` name the components of the two vectors, `robot_type` the robot.
    """

    robot_type: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def layout(self) -> NDArray[np.float64]:
        """What the seed drew for this episode (object and goal positions, in metres); never observed."""
        ...

    def expert_action(self) -> Action:
        """The scripted expert's action now, float32 (A,), clipped to [-1, 1]."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Package versions and renderer settings that shape what is recorded; plain JSON values."""
        ...


def environments() -> tuple[str, ...]:
    """Every name `make` accepts, sorted."""
    return tuple(sorted(f"{suite}/{name}" for suite in SUITES for name in _suite(suite).environments()))


def make(name: str, *, image_size: int = 96, render: bool = True) -> Environment:
    """Open the environment called `name`, for example `metaworld/drawer-open-v3`.

    `image_size` is the height and width of an observed image in pixels. With `render=False` no image is
    observed and no graphics library is needed: for policies that see only the state.

    Raises:
        SimulatorError: no such environment, or the simulator or its graphics library is missing.
    """
    suite, _, task = name.partition("/")
    if suite not in SUITES or task not in _suite(suite).environments():
        raise SimulatorError(_unknown(name))
    return cast("Environment", _suite(suite).make(task, image_size=image_size, render=render))


def describe(name: str) -> type[Environment]:
    """The class of the environment called `name`, whose attributes tell its sizes, names and rate; nothing is opened.

    Raises:
        SimulatorError: no such environment.
    """
    suite, _, task = name.partition("/")
    if suite not in SUITES or task not in _suite(suite).environments():
        raise SimulatorError(_unknown(name))
    return cast("type[Environment]", _suite(suite).describe(task))


def _suite(name: str) -> Any:
    return import_module(f".{SUITES[name]}", __package__)


def _unknown(name: str) -> str:
    known = environments()
    suite, _, task = name.partition("/")
    message = f"no environment is called `{name}`."
    by_task = {known_name.partition("/")[2]: known_name for known_name in known}
    close = [f"`{by_task[found]}`" for found in get_close_matches(task or suite, by_task, n=3, cutoff=0.6)]
    if close:
        return f"{message} Did you mean {' or '.join(close)}?"
    return f"{message} Known: {', '.join(known)}"
