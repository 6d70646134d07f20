"""The interface of simulators, and the environments by name.

    environment = make("metaworld/drawer-open-v3", image_size=96)
    observation = environment.reset(seed=0)
    result = environment.step(action)

A name is `<suite>/<environment>`. A suite is a module with the functions of `Suite`: one of this package, or
one that another package provides by an entry point in the group `policysmith.simulators`, named like the
suite. It is imported when its name is used.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...schemas.errors import SimulatorError
from ...schemas.wording import near

Observation = dict[str, Any]
"""LeRobot's flat keys: `observation.images.<camera>` uint8 (3, H, W), absent without rendering;
`observation.state` float32 (S,); `task`, the instruction, str."""

Action = NDArray[np.float32]
Image = NDArray[np.uint8]

GROUP = "policysmith.simulators"
"""Group of the entry points that name the suites of other packages."""
SUITES = {"metaworld": "metaworld"}
"""Modules of this package by the name of their suite."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of an action. `done` marks the step limit; success does not end an episode."""

    observation: Observation
    success: bool
    done: bool


@runtime_checkable
class Environment(Protocol):
    """One robot in one simulated task.

    Dimensions named in the optional attributes `state_names` and `action_names` are mapped to the policy's
    order.

    Attributes:
        name: Name with the suite, such as `metaworld/push-v3`.
        action_dim: Size A of an action.
        state_dim: Size S of a state.
        cameras: Names of the images.
        fps: Control steps per simulated second.
        max_steps: Step limit of an episode.
        task: The instruction.
    """

    name: str
    action_dim: int
    state_dim: int
    cameras: tuple[str, ...]
    fps: int
    max_steps: int
    task: str

    def reset(self, seed: int) -> Observation:
        """Begin the episode of `seed`, independently of earlier episodes."""
        ...

    def step(self, action: Action) -> StepResult:
        """Apply an action (A,) in [-1, 1] for one control step; values outside are clipped.

        Raises:
            SimulatorError: The action has another shape or is not finite, or the episode is over.
        """
        ...

    def render(self) -> Image:
        """Return the current view of the first camera, uint8 (H, W, 3).

        Raises:
            SimulatorError: The environment was made with `render=False`.
        """
        ...

    def close(self) -> None:
        """Free graphics memory; may be called twice."""
        ...


@runtime_checkable
class Demonstrator(Environment, Protocol):
    """An environment with a scripted expert.

    Attributes:
        robot_type: Name of the robot.
        state_names: Names of the S dimensions of a state.
        action_names: Names of the A dimensions of an action.
    """

    robot_type: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def layout(self) -> NDArray[np.float64]:
        """Return the positions of objects and goal drawn by the seed, in meters; never observed."""
        ...

    def expert_action(self) -> Action:
        """Return the current action of the expert, float32 (A,), clipped to [-1, 1]."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return the facts of a recording as JSON values, with package versions under `versions`, if any."""
        ...


class Suite(Protocol):
    """A module that offers the environments of one simulator."""

    def environments(self) -> tuple[str, ...]:
        """Return the names of the environments, without the suite."""
        ...

    def make(self, name: str, *, image_size: int, render: bool) -> Environment:
        """Open an environment."""
        ...

    def describe(self, name: str) -> type[Environment]:
        """Return the class of an environment with its attributes set, without opening a simulator."""
        ...


def environments() -> tuple[str, ...]:
    """Return every name that `make` accepts, sorted; suites that cannot be imported are left out."""
    found: list[str] = []
    for suite in {*SUITES, *(point.name for point in entry_points(group=GROUP))}:
        with suppress(SimulatorError):
            found += [f"{suite}/{name}" for name in _suite(suite).environments()]
    return tuple(sorted(found))


def make(name: str, *, image_size: int = 96, render: bool = True) -> Environment:
    """Open an environment, such as `metaworld/drawer-open-v3`.

    Args:
        name: Suite and environment.
        image_size: Height and width of an observed image, in pixels.
        render: Whether images are observed; without them no graphics library is needed.

    Raises:
        SimulatorError: The environment is unknown, or the simulator or its graphics library is missing.
    """
    suite, task = _find(name)
    return suite.make(task, image_size=image_size, render=render)


def describe(name: str) -> type[Environment]:
    """Return the class of an environment, whose attributes are its sizes, names and rate, without opening it.

    Raises:
        SimulatorError: The environment is unknown.
    """
    suite, task = _find(name)
    return suite.describe(task)


def _find(name: str) -> tuple[Suite, str]:
    suite, _, task = name.partition("/")
    found = _suite(suite)
    if found is None or task not in found.environments():
        raise SimulatorError(_unknown(name))
    return found, task


def _suite(name: str) -> Any:
    """Import a suite; None for an unknown name."""
    plugins = [point for point in entry_points(group=GROUP) if point.name == name]
    owners = [*(["policysmith"] if name in SUITES else []), *(point.value for point in plugins)]
    if len(owners) > 1:
        raise SimulatorError(
            f"the simulator `{name}` is provided by {' and '.join(owners)}; uninstall or rename one"
        )
    if name in SUITES:
        return import_module(f".{SUITES[name]}", __package__)
    if not plugins:
        return None
    try:
        return plugins[0].load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SimulatorError(
            f"the simulator `{name}` ({plugins[0].value}) cannot be imported: {reason}"
        ) from error


def _unknown(name: str) -> str:
    suite, _, task = name.partition("/")
    by_task = {known.partition("/")[2]: known for known in environments()}
    meant = near(task or suite, by_task)
    hint = f"did you mean `{by_task[meant]}`?" if meant else f"known: {', '.join(environments())}"
    return f"unknown environment `{name}`; {hint}"
