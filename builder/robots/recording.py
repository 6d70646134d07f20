"""Episodes of a robot as a LeRobot dataset."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...schemas.errors import DatasetError
from ...schemas.specs import IMAGES
from ..data.lerobot.features import ACTION, STATE
from ..data.writing.staging import require_empty
from ..data.writing.writer import LeRobotWriter
from .base import Action, Observation, Robot

SUCCESS, INTERVENTION = "next.success", "intervention"
"""Columns that mark the step after which the task was done, and steps whose action a person chose."""


class Recording:
    """A dataset of what a robot saw and did, complete after every episode that was kept.

    An error or a signal ends it with the episodes that it has; without any, nothing is written.

    Args:
        directory: Directory of the dataset, absent or empty.
        robot: Robot with its names and rate.

    Raises:
        DatasetError: The directory is not empty, or the rate of the robot is not a whole number.
    """

    def __init__(self, directory: Path, robot: Robot) -> None:
        require_empty(directory)
        if robot.fps != int(robot.fps):
            raise DatasetError(f"{robot.name} runs at {robot.fps} steps per second; record at a whole number")
        self.directory, self.episodes = directory, 0
        self._robot = robot
        self._writer: LeRobotWriter | None = None
        self._columns: dict[str, list[NDArray[Any]]] = {}

    def add(self, observation: Observation, action: Action, *, intervened: bool, success: bool) -> None:
        """Remember a step: what was seen, the action that was sent, and what it led to."""
        row = {
            f"{IMAGES}{camera}": np.array(observation[f"{IMAGES}{camera}"])
            for camera in self._robot.cameras
            if f"{IMAGES}{camera}" in observation
        }
        if self._robot.state_names:
            row[STATE] = np.array(observation[STATE], np.float32)
        row[ACTION] = np.array(action, np.float32)
        row[INTERVENTION] = np.array([intervened], np.float32)
        row[SUCCESS] = np.array([success], np.float32)
        for key, value in row.items():
            self._columns.setdefault(key, []).append(value)

    def keep(self) -> None:
        """Write the steps since the last episode as an episode."""
        if self._columns:
            frames = {key: np.stack(rows) for key, rows in self._columns.items()}
            if self._writer is None:
                self._writer = self._open(frames)
            self._writer.add_episode(self._robot.task, frames)
            self.episodes += 1
        self.discard()

    def discard(self) -> None:
        """Forget the steps since the last episode."""
        self._columns = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(None, None, None)

    def _open(self, frames: dict[str, NDArray[Any]]) -> LeRobotWriter:
        robot = self._robot
        states = {STATE: robot.state_names} if robot.state_names else {}
        return LeRobotWriter(
            self.directory,
            fps=int(robot.fps),
            cameras={
                key.removeprefix(IMAGES): (images.shape[2], images.shape[3])
                for key, images in frames.items()
                if key.startswith(IMAGES)
            },
            vectors={
                **states,
                ACTION: robot.action_names,
                INTERVENTION: ["intervention"],
                SUCCESS: ["success"],
            },
            robot_type=robot.name,
        )


__all__ = ["INTERVENTION", "SUCCESS", "Recording"]
