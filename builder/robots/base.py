"""The interface of a robot, real or simulated.

class Arm(Robot):
name, fps, task = "my_arm", 30, "Pick up the cube"
cameras, state_names, action_names = ("front",), JOINTS, JOINTS

def reset(self, seed): ...
def observe(self): ...
def act(self, action): ...
def stop(self): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clock import Clock, WallClock

Observation = dict[str, Any]
"""LeRobot's flat keys: `observation.images.<camera>` uint8 (3, H, W), `observation.state` float32 (S,), `task` str."""
Action = NDArray[np.float32]


class Robot(ABC):
    """A robot in front of a task. Subclasses implement `reset`, `observe`, `act` and `stop`."""

    name: str
    """Name, for messages and recordings."""
    fps: float
    """Control steps per second."""
    task: str
    """Instruction."""
    cameras: tuple[str, ...]
    """Names of the cameras."""
    state_names: tuple[str, ...]
    """Names of the dimensions of a state; `()` without states."""
    action_names: tuple[str, ...]
    """Names of the dimensions of an action."""
    limits: tuple[Action, Action] | None = None
    """Lowest and highest actions (A,); actions are clamped to them. None for no limits."""
    max_steps: int = 1000
    """Step limit of an episode."""

    @property
    def clock(self) -> Clock:
        """Clock of its control steps."""
        return WallClock()

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Prepare an episode; a simulator does so by the seed, a real robot moves to its start and waits for the scene."""

    @abstractmethod
    def observe(self) -> Observation:
        """Return the latest observation."""

    @abstractmethod
    def act(self, action: Action) -> None:
        """Send an action (A,), float32, and return at once."""

    @abstractmethod
    def stop(self) -> None:
        """Hold still. May be called several times, and by the watchdog from another thread."""

    def close(self) -> None:  # noqa: B027  # a robot may have nothing to release
        """Release the hardware."""

    def success(self) -> bool | None:
        """Return whether the task is done, which ends the episode; None if the robot cannot tell."""
        return None

    def intervention(self) -> Action | None:
        """Return the action (A,) of a person who has taken over, which replaces that of the policy, or None."""
        return None

    def enabled(self) -> bool:
        """Return whether the dead man's switch is held. Released, it stops the robot and ends the episode."""
        return True


__all__ = ["Action", "Observation", "Robot"]
