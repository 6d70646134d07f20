"""The datasets that a recipe uses, and the form in which a policy gets their samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from ...components.embodiments import EMBODIMENT
from ...schemas.nodes import KeyPath
from ...schemas.recipe import DataSection
from ...schemas.specs import Kind, Spec, Specs
from ..data.dataset import LeRobotDataset
from ..data.lerobot.columns import Columns
from ..data.lerobot.info import DatasetInfo
from ..data.lerobot.layout import Layout, read_layout
from ..data.lerobot.table import EpisodeTable, read_table
from ..data.mixture import Mixture, RobotDataset
from ..data.robots import Robots
from ..data.windows import windows as numeric_windows
from ..signals import Signals

IMAGES = "observation.images."


@dataclass(frozen=True)
class Windows:
    """Time steps of a sample, relative to its frame."""

    observations: Sequence[int]
    actions: Sequence[int]

    @classmethod
    def of(cls, section: DataSection) -> Windows:
        """Those that a recipe asks for."""
        past = section.past_actions
        return cls(range(1 - section.observation_steps, 1), range(-past, section.horizon - past))


@dataclass(frozen=True)
class Source:
    """One dataset, and what a recipe uses of it."""

    name: str | None
    """The robot's; None where the recipe has one dataset."""
    place: KeyPath
    """Where the recipe says it."""
    path: Path
    info: DatasetInfo
    cameras: Mapping[str, str]
    """Names in the dataset, by the names that the policy knows."""
    size: tuple[int, int] | None
    """Height and width that images are brought to; None where they stay."""
    weight: float
    specs: Specs
    """Of the dataset's own samples, by the policy's names."""
    episodes: tuple[int, ...]
    """Those that are used."""
    training: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    statistics: Mapping[str, Any] | None = None
    """Of the training episodes, by key."""
    columns: Columns | None = None
    """Columns of the dataset to rename and join."""
    layout: Layout | None = None
    """The metadata, where they were read."""
    instructions: tuple[str, ...] = ()
    """The different instructions of the episodes that are used."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Columns that hold NaN and the like, and where; none of them can be read."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """The numeric observations that samples hold."""
        return tuple(key for key, spec in self.specs.items() if spec.kind is Kind.STATE)

    def table(self, episodes: Sequence[int]) -> tuple[Layout, EpisodeTable]:
        """Metadata, and states and actions of some episodes. Raises DatasetError."""
        layout = self.layout or read_layout(self.path, self.columns)
        return layout, read_table(layout, layout.choose_episodes(episodes), self.vectors)

    def without(self, keys: Collection[str]) -> Source:
        """The source as if its dataset did not have these observations."""
        return replace(
            self,
            specs={key: spec for key, spec in self.specs.items() if key not in keys},
            statistics={key: value for key, value in (self.statistics or {}).items() if key not in keys},
            unusable={key: where for key, where in self.unusable.items() if key not in keys},
        )

    def open(self, windows: Windows, episodes: Sequence[int]) -> LeRobotDataset:
        """Samples of some episodes as the dataset has them. Decodes videos once."""
        return LeRobotDataset(
            self.path,
            cameras=tuple(self.cameras.values()),
            observation_indices=windows.observations,
            action_indices=windows.actions,
            episodes=episodes,
            vectors=self.vectors,
            columns=self.columns,
        )

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images as the policy gets them."""
        return self.size or self.info.cameras[self.cameras[camera]]

    def frames(self, episodes: Sequence[int]) -> int:
        """Number of frames of some episodes."""
        lengths = dict(zip(self.info.episodes, self.info.episode_lengths, strict=True))
        return sum(lengths[episode] for episode in episodes)


@dataclass(frozen=True)
class DataPlan:
    """The demonstrations a recipe uses: one source without a name, or one for each robot."""

    windows: Windows
    sources: tuple[Source, ...]
    specs: dict[str, Spec]
    """Of the samples that the policy is trained on."""

    @cached_property
    def robots(self) -> Robots:
        """The robots that the data tells apart, which may be none."""
        own = {source.name: source.specs for source in self.sources if source.name is not None}
        return Robots(own, self.specs)

    @property
    def statistics(self) -> dict[str, Any]:
        """By key; of several robots, by name and key, as wide as the robot's own vectors."""
        held = {source.name: dict(source.statistics or {}) for source in self.sources}
        return held[None] if None in held else {str(name): value for name, value in held.items()}

    @property
    def signals(self) -> dict[str, Any]:
        """Names of the dimensions and the rate of the data, as `config.json` holds them; of several robots, by name."""
        held = {source.name: Signals.of(source.info).to_json() for source in self.sources}
        return held[None] if None in held else {str(name): value for name, value in held.items()}

    @property
    def warnings(self) -> list[str]:
        """Doubts about several datasets that one policy learns from."""
        first, *others = self.sources
        return [
            f"`{first.name}` has {first.info.fps:g} frames per second and `{other.name}` {other.info.fps:g}: a chunk of "
            "actions takes other times"
            for other in others
            if Signals.of(first.info).other_rate(Signals.of(other.info))
        ]

    @property
    def paths(self) -> str | dict[str, str]:
        """Where the dataset lies, or that of each robot by name; for the record of a run."""
        found = {source.name: str(source.path.resolve()) for source in self.sources}
        return found[None] if None in found else {str(name): path for name, path in found.items()}

    def numbers(self) -> Iterator[dict[str, Any]]:
        """States and actions of all training samples in the form the policy gets them, in batches, without images."""
        for source in self.sources:
            layout, table = source.table(source.training)
            for key in source.unusable:
                np.nan_to_num(table.columns[key], copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            given = numeric_windows(
                table, self.windows.observations, self.windows.actions, tasks=layout.tasks
            )
            for batch in given:
                yield batch if source.name is None else self.robots.find(source.name).batch_to_common(batch)

    def samples(self, most: int = 4096) -> Iterator[dict[str, Any]]:
        """About as many training samples as `most`, evenly spaced, without images."""
        stride = math.ceil(sum(source.frames(source.training) for source in self.sources) / most)
        for batch in self.numbers():
            for row in range(0, len(batch["task"]), stride):
                yield {key: values[row] for key, values in batch.items()}

    @property
    def instructions(self) -> tuple[str, ...]:
        """The different instructions of all that is used."""
        return tuple(dict.fromkeys(text for source in self.sources for text in source.instructions))

    def without(self, keys: Collection[str]) -> DataPlan:
        """The plan as if no dataset had these observations."""
        sources = tuple(source.without(keys) for source in self.sources)
        specs = {key: spec for key, spec in self.specs.items() if key not in keys}
        return DataPlan(self.windows, sources, specs)

    def open(self, split: Literal["training", "validation"]) -> Dataset[Any] | None:
        """The samples of a split; None where it has no episodes. Decodes videos once."""
        opened = [
            (source, source.open(self.windows, episodes))
            for source in self.sources
            if (episodes := getattr(source, split))
        ]
        if not opened or opened[0][0].name is None:
            return opened[0][1] if opened else None
        parts = [RobotDataset(data, self.robots.find(s.name), s.cameras) for s, data in opened]
        return Mixture(parts, [source.weight for source, _ in opened])


def common_specs(sources: Sequence[Source]) -> dict[str, Spec]:
    """Specs of what all robots' samples become: vectors of the widest, images of one size, and whose they are."""
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
    names = [source.name for source in sources]
    why = f"{len(names)} robots: {', '.join(str(name) for name in names)}"
    return {**specs, EMBODIMENT: Spec(Kind.EMBODIMENT, ("B",), why, vocab=len(names))}
