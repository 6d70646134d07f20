"""Compatibility of a policy's observations and actions with an environment or a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....components.embodiments import EMBODIMENT
from ....schemas.errors import SpecError
from ....schemas.specs import IMAGES, Kind
from ...data.lerobot.features import ACTION
from ...data.lerobot.info import DatasetInfo
from ...data.signals import Signals, listed, order
from ...saved_policy import SavedPolicy
from ...simulation.base import Environment
from ...wiring.parts import Parts
from ...wiring.solve import Wiring, observed_keys, wire, with_statistics

STATE = "observation.state"


@dataclass(frozen=True)
class Needs:
    """Observations that a policy reads, and the size of its actions.

    `cameras` maps a name to (height, width) in pixels, `vectors` a key to its size. For one of several
    robots, cameras have the names of its dataset, and sizes are its own.
    """

    cameras: Mapping[str, tuple[int, int]]
    """Height and width in pixels, by name."""
    vectors: Mapping[str, int]
    """Sizes of states, by key."""
    action_dim: int
    embodiment: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Camera names of the policy, by the names above; by default the same."""
    signals: Signals = field(default_factory=Signals)
    """Names, order and rate of its training data."""

    def select(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of an observation that the policy reads, by its own names."""
        names = {f"{IMAGES}{own}": f"{IMAGES}{name}" for own, name in self.names.items()}
        read = {names.get(key, key): value for key, value in observation.items() if key in self.keys}
        return read if self.embodiment is None else {**read, EMBODIMENT: self.embodiment}

    @property
    def keys(self) -> frozenset[str]:
        """Keys of an observation that the policy reads."""
        return frozenset([*(f"{IMAGES}{name}" for name in self.cameras), *self.vectors, "task"])

    @property
    def image_size(self) -> int | None:
        """Side of the square images in pixels; None without cameras.

        Raises SpecError if they differ or are not square.
        """
        sizes = {side for size in self.cameras.values() for side in size}
        if len(sizes) > 1:
            shown = ", ".join(f"`{name}` {h} x {w}" for name, (h, w) in self.cameras.items())
            raise SpecError(
                f"simulators render square images of one size, but the policy reads {shown} (height x width)",
                help="train on square images, or evaluate with `--open-loop`",
            )
        return sizes.pop() if sizes else None


def needs_of(saved: SavedPolicy, embodiment: str | None = None) -> Needs:
    """Return what a composed policy reads, or all training data of a hand-written one.

    Raises:
        SpecError: The policy is for several robots, and `embodiment` names none of them.
    """
    robot = saved.robot(embodiment)
    specs = saved.specs
    read = set(specs)
    if not saved.handwritten:
        parts = Parts.from_resolved(saved.recipe)
        read = observed_keys(parts, wiring_of(saved, parts))
    own = specs if robot is None else robot.own
    chosen = saved.data_section(embodiment).get("cameras")
    called = chosen if isinstance(chosen, dict) else {}
    cameras, vectors, names = {}, {}, {}
    for key in sorted(read & own.keys()):
        spec = own[key]
        if spec.kind is Kind.IMAGE:
            height, width = spec.dims[-2:]
            name = key.removeprefix(IMAGES)
            cameras[called.get(name, name)] = (int(height), int(width))
            names[called.get(name, name)] = name
        elif spec.kind is Kind.STATE:
            vectors[key] = spec.width
    signals = Signals.of_policy(saved.content, embodiment)
    return Needs(cameras, vectors, own["action"].width, embodiment, {} if robot is None else names, signals)


def wiring_of(saved: SavedPolicy, parts: Parts) -> Wiring:
    """Return the edges of a composed policy."""
    held = saved.content.get("facts") or {}
    readers = [parts.collator, *parts.transforms]
    return wire(parts, saved.specs, with_statistics(held, readers, saved.content["statistics"]))


@dataclass(frozen=True)
class Scene:
    """Cameras, sizes, rate and names of an environment, as `simulation.base.Environment` defines them."""

    name: str
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    fps: int
    max_steps: int
    task: str
    state_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, environment: Environment | type[Environment]) -> Scene:
        """Return the scene of an environment, which may name its dimensions."""
        names: dict[str, Any] = {name: getattr(environment, name, None) for name in cls.__dataclass_fields__}
        for field_ in ("cameras", "state_names", "action_names"):
            names[field_] = None if names[field_] is None else tuple(names[field_])
        return cls(**names)

    @property
    def signals(self) -> Signals:
        """Names, order and rate of its states and actions."""
        given = {STATE: self.state_names, ACTION: self.action_names}
        return Signals(self.fps, {key: names for key, names in given.items() if names})


@dataclass(frozen=True)
class Reordering:
    """Order of the environment's state for the policy, and of the policy's actions for it; None if equal."""

    state: tuple[int, ...] | None = None
    action: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, needs: Needs, scene: Scene) -> Reordering:
        """Return the reordering by names, if both sides have them."""
        found: dict[str, tuple[int, ...]] = {}
        notes = []
        theirs = scene.signals
        for key, own, names in needs.signals.pairs(theirs):
            if key != ACTION and key not in needs.vectors:
                continue
            places = order(names, own) if key != ACTION else order(own, names)
            if places is not None:
                found[key] = tuple(places)
                notes.append(
                    f"`{key}` is mapped by name: {scene.name} has {listed(names)}, the policy has {listed(own)}."
                )
        unnamed = [k for k in (STATE, ACTION) if k in theirs.names and k not in needs.signals.names]
        if not needs.signals:
            notes.append(
                f"The policy does not record its rate and names, so they are not compared with those of {scene.name} "
                f"({scene.fps} steps per second)."
            )
        elif unnamed := [key for key in unnamed if key == ACTION or key in needs.vectors]:
            notes.append(
                f"The training data has no names for {' and '.join(f'`{key}`' for key in unnamed)}, so their order is not "
                f"compared with that of {scene.name}."
            )
        return cls(found.get(STATE), found.get(ACTION), tuple(notes))

    def observation(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the observation in the policy's order."""
        if self.state is None or STATE not in observation:
            return dict(observation)
        return {**observation, STATE: observation[STATE][..., list(self.state)]}

    def command(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the action in the environment's order."""
        return action if self.action is None else action[..., list(self.action)]


def check_scene(needs: Needs, scene: Scene) -> None:
    """Raise SpecError with every difference between a policy and an environment.

    The same names in another order are mapped and do not count as a difference.
    """
    problems = [
        f"the policy reads camera `{name}`, {scene.name} has {_listed(scene.cameras)}"
        for name in needs.cameras
        if name not in scene.cameras
    ]
    for key, size in needs.vectors.items():
        if key != STATE:
            problems.append(f"the policy reads `{key}`, {scene.name} has only `{STATE}`")
        elif size != scene.state_dim:
            problems.append(f"the policy reads a state of {size} values, {scene.name} has {scene.state_dim}")
    if needs.action_dim != scene.action_dim:
        problems.append(
            f"the policy predicts actions of {needs.action_dim} values, {scene.name} takes {scene.action_dim}"
        )
    if needs.signals.other_rate(scene.signals):
        problems.append(
            f"the policy was trained at {needs.signals.fps:g} frames per second, {scene.name} takes {scene.fps:g} actions "
            "per second"
        )
    problems += [
        f"the policy has `{key}` as {listed(own)}, {scene.name} as {listed(names)}"
        for key, own, names in needs.signals.pairs(scene.signals)
        if (key == ACTION or key in needs.vectors) and len(own) == len(names) and order(own, names) is None
    ]
    if problems:
        raise SpecError(
            f"the policy does not fit the environment: {'; '.join(problems)}",
            help="choose the environment of its demonstrations with `--env`, or train on demonstrations of this one: "
            f"`policysmith data record --env {scene.name} --output DIR`",
        )


def check_dataset(saved: SavedPolicy, info: DatasetInfo, name: str, embodiment: str | None = None) -> None:
    """Raise SpecError with every difference between a policy, as it drives one robot, and a dataset."""
    needs = needs_of(saved, embodiment)
    problems = []
    for camera, (height, width) in needs.cameras.items():
        if camera not in info.cameras:
            problems.append(
                f"the policy reads camera `{camera}`, the dataset has {_listed(tuple(info.cameras))}"
            )
        elif info.cameras[camera] != (height, width):
            h, w = info.cameras[camera]
            problems.append(
                f"the policy reads `{camera}` at {height} x {width} pixels (height x width), the dataset has {h} x {w}"
            )
    for key, size in needs.vectors.items():
        if info.vectors.get(key) != size:
            held = f"{info.vectors[key]} values" if key in info.vectors else "none"
            problems.append(f"the policy reads {size} values of `{key}`, the dataset has {held}")
    if info.action_dim != needs.action_dim:
        problems.append(
            f"the policy predicts actions of {needs.action_dim} values, the dataset has {info.action_dim}"
        )
    if needs.signals.other_rate(Signals.of(info)):
        problems.append(
            f"the policy was trained at {needs.signals.fps:g} frames per second, the dataset has {info.fps:g}"
        )
    problems += [
        f"the policy has `{key}` as {listed(own)}, the dataset as {listed(names)}"
        for key, own, names in needs.signals.pairs(Signals.of(info))
        if key == ACTION or key in needs.vectors
    ]
    if problems:
        raise SpecError(
            f"the policy does not fit the dataset {name}: {'; '.join(problems)}",
            help="use its training dataset, or one recorded with the same robot and cameras",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
