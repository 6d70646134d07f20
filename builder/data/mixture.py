"""Demonstrations of several robots as one dataset, whose samples have a common format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...schemas.specs import IMAGES
from .dataset import LeRobotDataset
from .lerobot.features import ACTION
from .robots import Robot


class RobotDataset(Dataset[dict[str, Any]]):
    """The dataset of one robot in the common format (see `Robot.to_common`)."""

    def __init__(self, dataset: LeRobotDataset, robot: Robot, cameras: Mapping[str, str]) -> None:
        """Wrap a dataset; `cameras` maps common names to those of the dataset."""
        self.source, self.robot = dataset, robot
        self.episodes, self.episode_lengths, self.fps = dataset.episodes, dataset.episode_lengths, dataset.fps
        self._names = {f"{IMAGES}{own}": f"{IMAGES}{name}" for name, own in cameras.items()}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.source[index]
        return self.robot.to_common({self._names.get(key, key): value for key, value in sample.items()})

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor of a sample, without reading one; actions have the common width."""
        shape = self.source.shape(key)
        return (*shape[:-1], self.robot.common[ACTION].width) if key == ACTION else shape


class Mixture(Dataset[dict[str, Any]]):
    """Several datasets, concatenated. `shares` are the length and the sampling weight of each."""

    def __init__(self, parts: Mapping[str, RobotDataset], weights: Sequence[float]) -> None:
        """Concatenate datasets, by name, each with a sampling weight."""
        self.parts, self._names = tuple(parts.values()), tuple(parts)
        self.shares = tuple((len(part), weight) for part, weight in zip(self.parts, weights, strict=True))
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        which = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[which][row - self._ends[which] + len(self.parts[which])]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256, in hex, of the used files of each dataset, by its name."""
        return {name: part.source.fingerprint for name, part in zip(self._names, self.parts, strict=True)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the used files of all datasets, their names and their robots."""
        prints = dict(self.fingerprints)
        for name, part in zip(self._names, self.parts, strict=True):
            if part.robot.name != name:
                prints[name] = f"{part.robot.name} {prints[name]}"
        return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()
