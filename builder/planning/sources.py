"""The datasets of a recipe, and the common form of their samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...components.embodiments import EMBODIMENT
from ...schemas.recipe import DataSection
from ...schemas.specs import IMAGES, Kind, Spec, Specs
from ...schemas.yaml.nodes import KeyPath
from ..data.dataset import LeRobotDataset
from ..data.frames.choice import FrameChoice
from ..data.lerobot.columns import Columns
from ..data.lerobot.info import DatasetInfo
from ..data.lerobot.layout import Layout, read_layout
from ..data.lerobot.table import EpisodeTable, read_table
from ..data.mixture import Mixture, RobotDataset
from ..data.robots import Robots
from ..data.selection import without_idle_starts
from ..data.signals import Signals
from ..data.time_steps import TimeSteps
from ..data.windows import windows as numeric_windows


@dataclass(frozen=True)
class DataSource:
    """One dataset, and the part of it that a recipe uses."""

    name: str | None
    """Its name in the recipe; None if the recipe has one dataset."""
    robot: str | None
    """Name of its robot; None if the recipe has one dataset."""
    place: KeyPath
    """Place in the recipe."""
    path: Path
    info: DatasetInfo
    cameras: Mapping[str, str]
    """Camera names in the dataset, by the names that the policy knows."""
    size: tuple[int, int] | None
    """Height and width that images are resized to; None to keep their size."""
    weight: float
    specs: Specs
    """Specs of the dataset's own samples, by the policy's names."""
    episodes: tuple[int, ...]
    """Episodes in use."""
    training: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    statistics: Mapping[str, Any] | None = None
    """Statistics of the training episodes of all datasets of its robot, by key."""
    columns: Columns | None = None
    """Columns of the dataset to rename and concatenate."""
    layout: Layout | None = None
    """Metadata of the dataset, if already read."""
    absent: frozenset[str] = frozenset()
    """Cameras of other datasets that this one lacks."""
    instructions: tuple[str, ...] = ()
    """Distinct instructions of the episodes in use."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Columns that cannot be learned from, each with the fault and its place."""
    frame_choice: FrameChoice = field(default_factory=FrameChoice)
    """Form in which its frames are kept."""
    trim: bool = False
    """True if idle frames at the start of episodes are left out."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """Numeric observations of its samples."""
        return tuple(key for key, spec in self.specs.items() if spec.kind is Kind.STATE)

    def table(self, episodes: Sequence[int]) -> tuple[Layout, EpisodeTable]:
        """Return metadata, and states and actions of some episodes.

        Raise DatasetError if they are damaged.
        """
        layout = self.layout
        if layout is None:
            layout = read_layout(self.path, self.columns)
            layout = without_idle_starts(layout) if self.trim else layout
        return layout, read_table(layout, layout.choose_episodes(episodes), self.vectors)

    def without(self, keys: Collection[str]) -> DataSource:
        """Return the source without some observations."""
        return replace(
            self,
            specs={key: spec for key, spec in self.specs.items() if key not in keys},
            statistics={key: value for key, value in (self.statistics or {}).items() if key not in keys},
            unusable={key: where for key, where in self.unusable.items() if key not in keys},
        )

    def open(self, time_steps: TimeSteps, episodes: Sequence[int]) -> LeRobotDataset:
        """Open the samples of some episodes."""
        return LeRobotDataset(
            self.path,
            cameras=tuple(self.cameras.values()),
            observation_indices=time_steps.observations,
            action_indices=time_steps.actions,
            episodes=episodes,
            vectors=self.vectors,
            columns=self.columns,
            frames=self.frame_choice,
            trim=self.trim,
        )

    def image_size(self, camera: str) -> tuple[int, int]:
        """Return height and width of a camera's images as the policy reads them."""
        return self.size or self.info.cameras[self.cameras[camera]]

    def frames(self, episodes: Sequence[int]) -> int:
        """Return the number of frames of some episodes."""
        lengths = dict(zip(self.info.episodes, self.info.episode_lengths, strict=True))
        return sum(lengths[episode] for episode in episodes)


@dataclass(frozen=True)
class DataPlan:
    """The demonstrations of a recipe: one source without a name, or one for each robot."""

    time_steps: TimeSteps
    sources: tuple[DataSource, ...]
    specs: dict[str, Spec]
    """Specs of the samples that the policy is trained on."""
    dropped: tuple[tuple[KeyPath, str], ...] = ()
    """Columns that nothing reads because they cannot be learned from: place of the dataset, and reason."""

    @cached_property
    def robots(self) -> Robots:
        """Robots that the data tells apart; empty for a single dataset."""
        own: dict[str, Specs] = {}
        for source in self.sources:
            if source.robot is not None:
                own[source.robot] = {**source.specs, **own.get(source.robot, {})}
        return Robots(own, self.specs)

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics by key; for several robots by name and key, as wide as the robot's own vectors."""
        held = {source.robot: dict(source.statistics or {}) for source in self.sources}
        return held[None] if None in held else {str(name): value for name, value in held.items()}

    @property
    def signals(self) -> dict[str, Any]:
        """Names and rate of the data, as `config.json` holds them; for several robots, by name."""
        held = {source.robot: Signals.of(source.info).to_json() for source in self.sources}
        return held[None] if None in held else {str(name): value for name, value in held.items()}

    @property
    def paths(self) -> str | dict[str, str]:
        """Absolute path of the dataset, or of each by name."""
        found = {source.name: str(source.path.resolve()) for source in self.sources}
        return found[None] if None in found else {str(name): path for name, path in found.items()}

    def numbers(self) -> Iterator[dict[str, Any]]:
        """Yield states and actions of all training samples, in batches, as the policy reads them."""
        for source in self.sources:
            layout, table = source.table(source.training)
            for key in source.unusable:
                np.nan_to_num(table.columns[key], copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            given = numeric_windows(
                table, self.time_steps.observations, self.time_steps.actions, tasks=layout.tasks
            )
            for batch in given:
                yield batch if source.robot is None else self.robots.find(source.robot).batch_to_common(batch)

    def samples(self, most: int = 4096) -> Iterator[dict[str, Any]]:
        """Yield about `most` training samples, evenly spaced, without images."""
        stride = math.ceil(sum(source.frames(source.training) for source in self.sources) / most)
        for batch in self.numbers():
            for row in range(0, len(batch["task"]), stride):
                yield {key: values[row] for key, values in batch.items()}

    @property
    def instructions(self) -> tuple[str, ...]:
        """Distinct instructions of all episodes in use."""
        return tuple(dict.fromkeys(text for source in self.sources for text in source.instructions))

    def without(self, keys: Collection[str]) -> DataPlan:
        """Return the plan without some observations."""
        sources = tuple(source.without(keys) for source in self.sources)
        specs = {key: spec for key, spec in self.specs.items() if key not in keys}
        return replace(self, sources=sources, specs=specs)

    def open(self, split: Literal["training", "validation"]) -> LeRobotDataset | Mixture | None:
        """Open the samples of a split, or return None if it has no episodes."""
        datasets = [
            (source, source.open(self.time_steps, episodes))
            for source in self.sources
            if (episodes := getattr(source, split))
        ]
        if not datasets or datasets[0][0].robot is None:
            return datasets[0][1] if datasets else None
        parts = {
            str(source.name): RobotDataset(data, self.robots.find(source.robot), source.cameras)
            for source, data in datasets
        }
        return Mixture(parts, [source.weight for source, _ in datasets])


def recipe_time_steps(section: DataSection) -> TimeSteps:
    """Return the time steps that a recipe asks for."""
    return TimeSteps.of(
        horizon=section.horizon,
        observation_steps=section.observation_steps,
        past_actions=section.past_actions,
    )


def common_specs(sources: Sequence[DataSource]) -> dict[str, Spec]:
    """Return specs of the robots' common samples: widest vectors, images of one size, and the robot."""
    specs: dict[str, Spec] = {}
    for source in sources:
        for key, spec in source.specs.items():
            known = specs.get(key)
            if spec.kind is Kind.IMAGE:
                size = source.image_size(key.removeprefix(IMAGES))
                resized = replace(spec, dims=(*spec.dims[:3], *size))
                specs.setdefault(key, resized)
            elif spec.kind is Kind.TEXT:
                specs[key] = replace(spec, why="instructions")
            elif known is None or spec.width > known.width:
                specs[key] = replace(spec, why=f"{spec.why}, the widest of the robots")
    names = sorted({str(source.robot) for source in sources})
    why = f"{len(names)} robots: {', '.join(names)}"
    return {**specs, EMBODIMENT: Spec(Kind.EMBODIMENT, ("B",), why, vocab=len(names))}
