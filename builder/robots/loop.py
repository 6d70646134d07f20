"""The control loop: observe, choose an action, act, at a fixed rate.

A step that is late by whole periods drops these instead of catching up. If no action comes for a while, a watchdog stops
the robot, and the action that comes too late is not sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ...schemas.errors import RobotError, SpecError
from .base import Action, Observation, Robot
from .clock import WallClock
from .recording import Recording

MOST_STALLS = 5
"""Stops in a row by the watchdog before the episode is given up."""
End = Literal["success", "step limit", "released"]


class Actor(Protocol):
    """A policy, here or on a server."""

    def select_action(
        self, observation: Mapping[str, Any], generator: torch.Generator | None = None, *, clamp: bool = False
    ) -> Tensor:
        """Return the next action (A,)."""
        ...

    def reset(self) -> None:
        """Forget the last episode."""
        ...


@dataclass(frozen=True)
class Interface:
    """Conversions between a robot and a policy, by default none."""

    observation: Callable[[Observation], Mapping[str, Any]] = dict
    """From the robot's observation to the policy's."""
    command: Callable[[Action], Action] = np.asarray
    """From the policy's action to the robot's."""


@dataclass(frozen=True)
class RobotEpisode:
    """Summary of an episode."""

    index: int
    seed: int
    end: End
    steps: int
    """Control steps with an action."""
    dropped: int
    """Control steps left out because an earlier one took too long."""
    clamped: int
    """Steps whose action was beyond the limits of the robot."""
    interventions: int
    """Steps whose action a person chose."""
    stalls: int
    """Times that the watchdog stopped the robot."""

    @property
    def success(self) -> bool:
        """True if the task was done."""
        return self.end == "success"


def drive(
    robot: Robot,
    actor: Actor,
    *,
    index: int = 0,
    seed: int = 0,
    interface: Interface | None = None,
    max_steps: int | None = None,
    clamp: bool = False,
    watchdog: float = 0.5,
    recording: Recording | None = None,
) -> RobotEpisode:
    """Run an episode until its success, the step limit, or the release of the dead man's switch.

    Args:
        robot: The robot.
        actor: The policy.
        index: Number of the episode.
        seed: Seed of the scene in a simulator, and of the random numbers of a local policy.
        interface: Conversions between robot and policy.
        max_steps: Step limit; by default that of the robot.
        clamp: Clamp actions to the range of training.
        watchdog: Seconds without an action after which the robot is stopped.
        recording: Dataset that the episode is added to.

    Raises:
        RobotError: The policy refuses an observation or its own action, or is too slow again and again, or an action is not finite.
        ServerError: The server is lost. The robot is stopped, and the episode is not recorded.
    """
    interface = interface or Interface()
    clock, period = robot.clock, 1.0 / robot.fps
    torch.manual_seed(seed)
    actor.reset()
    robot.reset(seed)
    counts = {"dropped": 0, "clamped": 0, "interventions": 0}
    steps, stalled, led = 0, 0, False
    end: End | None = None
    try:
        with Watchdog(robot, watchdog) as guard:
            next_step = clock.now()
            while end is None:
                if not robot.enabled():
                    end = "released"
                    break
                stalls, observation = guard.stalls, robot.observe()
                action = robot.intervention()
                intervened = action is not None
                if led and not intervened:
                    actor.reset()  # its chunk was planned before a person took over
                led = intervened
                if action is None:
                    try:
                        chosen = actor.select_action(interface.observation(observation), clamp=clamp)
                    except SpecError as error:
                        raise RobotError(f"episode {index}, step {steps}: {error}") from error
                    action = interface.command(chosen.float().numpy().astype(np.float32))
                late = guard.feed() > stalls
                if late:
                    actor.reset()
                    stalled += 1
                    if stalled == MOST_STALLS:
                        raise RobotError(
                            f"{robot.name} got no action within {watchdog:g} s, {stalled} times in a row; "
                            "use a faster policy or server, or a longer `--watchdog`"
                        )
                else:
                    stalled = 0
                    sent = limited(robot, action)
                    robot.act(sent)
                    steps += 1
                    success = bool(robot.success())
                    counts["clamped"] += not np.array_equal(sent, action)
                    counts["interventions"] += intervened
                    if recording is not None:
                        recording.add(observation, sent, intervened=intervened, success=success)
                    if success:
                        end = "success"
                    elif steps >= (max_steps or robot.max_steps):
                        end = "step limit"
                next_step += period
                behind = int((clock.now() - next_step) / period)
                if behind > 0:
                    counts["dropped"] += behind
                    next_step += behind * period
                clock.wait_until(next_step)
    finally:
        robot.stop()
        if recording is not None and end is None:
            recording.discard()
    if recording is not None:
        recording.keep()
    return RobotEpisode(index, seed, end, steps, stalls=guard.stalls, **counts)


def limited(robot: Robot, action: Action) -> Action:
    """Return an action (A,) within the limits of a robot. Raise RobotError if it has another size or is not finite."""
    if action.shape != (len(robot.action_names),) or not np.isfinite(action).all():
        raise RobotError(
            f"{robot.name} takes {len(robot.action_names)} finite values, and the action is {action}"
        )
    return action if robot.limits is None else np.clip(action, *robot.limits).astype(np.float32)


class Watchdog:
    """Thread that stops a robot when no action has come for so many seconds.

    It watches nothing if time is not that of the world.
    """

    def __init__(self, robot: Robot, seconds: float) -> None:
        self._robot, self._seconds = robot, seconds
        self._fed, self._lock = threading.Event(), threading.Lock()
        self._ended = False
        self.stalls = 0
        """Times that the robot was stopped."""
        self._thread = threading.Thread(target=self._watch, name="policysmith-watchdog", daemon=True)
        self._watches = isinstance(robot.clock, WallClock)

    def feed(self) -> int:
        """Tell that an action has come, and return the number of stops until then."""
        with self._lock:
            self._fed.set()
            return self.stalls

    def __enter__(self) -> Self:
        if self._watches:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._fed.set()
        if self._watches:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended:
            if self._fed.wait(self._seconds):
                self._fed.clear()
                continue
            with self._lock:
                if self._fed.is_set():  # an action came at the last moment
                    continue
                self.stalls += 1
                self._robot.stop()
            self._fed.wait()
            self._fed.clear()


__all__ = ["Actor", "Interface", "RobotEpisode", "Watchdog", "drive", "limited"]
