"""The datasets that a recipe uses, and the form in which a policy gets their samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from ..components.embodiments import EMBODIMENT
from ..schemas.document import KeyPath
from ..schemas.recipe import DataSection
from ..schemas.specs import Kind, Spec, Specs
from .data.dataset import LeRobotDataset
from .data.info import DatasetInfo
from .data.layout import read_layout
from .data.mixture import Mixture, RobotDataset
from .data.robots import Robots
from .data.table import read_table
from .data.windows import windows as numeric_windows
from .signals import Signals

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

    def open(self, windows: Windows, episodes: Sequence[int]) -> LeRobotDataset:
        """Samples of some episodes as the dataset has them. Decodes videos once."""
        return LeRobotDataset(
            self.path,
            cameras=tuple(self.cameras.values()),
            observation_indices=windows.observations,
            action_indices=windows.actions,
            episodes=episodes,
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
            layout = read_layout(source.path)
            table = read_table(layout, layout.choose_episodes(source.training))
            for batch in numeric_windows(table, self.windows.observations, self.windows.actions):
                yield batch if source.name is None else self.robots.find(source.name).unified_batch(batch)

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
