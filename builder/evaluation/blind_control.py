"""Blind control of a closed-loop evaluation: the same recipe, trained and evaluated without cameras.

On many tasks a blind policy succeeds half of the time, so a success rate alone proves little.
"""

from __future__ import annotations

import copy
import fnmatch
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...components.images.transform import ImageTransform
from ...components.registry import BACKBONES, HEADS, NECKS, TRANSFORMS
from ...schemas.errors import CheckpointError, SpecError
from ...schemas.specs import IMAGES, Kind
from ...schemas.yaml.document import from_mapping
from .. import runs
from ..builder import Builder
from ..saved_policy import SavedPolicy

SUFFIX = "_blind"


def blind(recipe: Mapping[str, Any], parameters: Iterable[str] = ()) -> dict[str, Any]:
    """Return the resolved recipe without the parts for cameras, named `<name>_blind`.

    Image backbones and image transforms are removed, with all references to them. `joint` backbones, which
    read images together with an instruction, stay and receive black images; so do all backbones if a `joint`
    neck would otherwise have nothing to read. Patterns of `policy.freeze` and `training.optimizer.groups` are
    removed if they match only removed parameters: exactly, given the names of the policy's `parameters`, else
    by the part that they begin with.

    Raises:
        SpecError: The policy is hand-written, reads no image, or has nothing left to read.
    """
    unseeing: dict[str, Any] = copy.deepcopy(dict(recipe))
    policy = unseeing["policy"]
    if policy["type"] != "composed":
        raise SpecError(
            f"`{policy['type']}` is hand-written, so its image inputs cannot be removed",
            help="set `evaluation.control` to `none`, or train a blind variant yourself",
        )
    backbones: dict[str, Any] = policy["backbones"]
    seeing = {name for name, raw in backbones.items() if BACKBONES.get(raw["type"]).kind is Kind.IMAGE}
    if not seeing:
        raise SpecError(
            "the policy reads no image, so it is its own blind control", help="set `control` to `none`"
        )
    joint = {name for name in seeing if BACKBONES.get(backbones[name]["type"]).joint}
    if _needed(policy, seeing - joint):
        joint = seeing
    gone = seeing - joint
    policy["backbones"] = {name: raw for name, raw in backbones.items() if name not in gone}
    lost = {f"backbones.{name}." for name in gone} | {f"necks.{name}." for name in _drop_necks(policy, gone)}
    head: dict[str, Any] = policy["head"]
    gone = {prefix.split(".")[1] for prefix in lost}
    _forget(head, [option for option in head if option.endswith("reads")], gone)
    if not policy["backbones"] or head.get("reads") == []:
        raise SpecError(
            "without cameras the head has nothing left to read, so there is no blind control",
            help="set `evaluation.control` to `none`, or add a backbone for the robot's state",
        )
    if "in_dim" in HEADS.get(head["type"]).Config.model_fields:
        head["in_dim"] = None
    names = [name for name in parameters if not name.startswith(tuple(lost))]

    def survives(pattern: str) -> bool:
        return bool(fnmatch.filter(names, pattern)) if names else not pattern.startswith(tuple(lost))

    policy["freeze"] = [pattern for pattern in policy["freeze"] if survives(pattern)]
    optimizer = unseeing["training"]["optimizer"]
    optimizer["groups"] = [group for group in optimizer["groups"] if survives(group["match"])]
    if joint:
        unseeing["transforms"].insert(0, {"type": "blank"})
    else:
        unseeing["transforms"] = [
            left for raw in unseeing["transforms"] if (left := _without_images(raw)) is not None
        ]
    if unseeing.get("evaluation"):
        unseeing["evaluation"] |= {"control": "none", "every": None}
    unseeing["training"] |= {"keep_best": None, "early_stop": None}
    unseeing["name"] += SUFFIX
    unseeing["output"] = None
    return unseeing


def _needed(policy: Mapping[str, Any], gone: Collection[str]) -> bool:
    """Return whether a `joint` neck would be removed with these backbones."""
    necks = policy.get("necks") or {}
    dropped = _drop_necks({"necks": copy.deepcopy(dict(necks))}, gone)
    return any(NECKS.get(necks[name]["type"]).joint for name in dropped)


def _drop_necks(policy: dict[str, Any], gone: Collection[str]) -> set[str]:
    """Remove references to removed parts from necks; return the necks removed for lack of input."""
    necks: dict[str, Any] = policy.get("necks") or {}
    dropped: set[str] = set()
    while True:
        for raw in necks.values():
            _forget(raw, NECKS.get(raw["type"]).roles, {*gone, *dropped})
        empty = {
            name
            for name, raw in necks.items()
            if any(raw.get(role) == [] for role in NECKS.get(raw["type"]).roles)
        }
        if not empty:
            return dropped
        dropped |= empty
        for name in empty:
            del necks[name]


def _forget(raw: dict[str, Any], options: Iterable[str], gone: Collection[str]) -> None:
    """Remove references to removed parts from the options of a part that list features."""
    for option in options:
        if raw.get(option) is not None:
            raw[option] = [entry for entry in raw[option] if entry.partition(".")[0] not in gone]


def _without_images(raw: dict[str, Any]) -> dict[str, Any] | None:
    if issubclass(TRANSFORMS.get(raw["type"]), ImageTransform):
        return None
    keys = raw.get("keys")
    if not isinstance(keys, list):
        return raw
    left = [key for key in keys if not str(key).startswith(IMAGES)]
    return {**raw, "keys": left} if left else None


class ControlReporter:
    """Reporter of the training of the control, about ten lines long."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._steps, self._shown = tell, 1, 0

    def start(self, step: int, steps: int) -> None:
        self._steps = steps

    def advance(self, step: int) -> None:
        """Do nothing."""

    def log(self, step: int, values: dict[str, float]) -> None:
        if (tenth := 10 * step // self._steps) > self._shown and "loss" in values:
            self._shown = tenth
            self._tell(f"training the blind control: step {step} of {self._steps}, loss {values['loss']:.4f}")

    def note(self, message: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class BlindControl:
    """A blind control, trained or to be trained."""

    builder: Builder
    directory: Path
    found: Path | None
    """Newest checkpoint of an earlier training of the same recipe on the same data."""
    stale: bool
    """True if the directory holds the control of another recipe or other data."""

    @classmethod
    def plan(
        cls, saved: SavedPolicy, parameters: Iterable[str], directory: Path, *, allow_imports: bool
    ) -> BlindControl:
        """Plan the control of a policy, to be found or trained in `directory`, without writing anything.

        Raises:
            SpecError: As raised by `blind`.
            CheckpointError: `directory` holds a run that is not a blind control.
            RecipeError: The control cannot be built.
        """
        recipe = blind(_with_dataset(saved), parameters)
        document = from_mapping(recipe, "the blind control", directory=saved.recipe_directory)
        builder = Builder.from_recipe(document, allow_imports=allow_imports)
        newest = runs.latest(directory) if directory.is_dir() else None
        same = newest is not None and _is_same(SavedPolicy.find(newest), builder, saved)
        if newest is not None and not same:
            _require_control(directory, SavedPolicy.find(newest))
        control = cls(builder, directory, newest if same else None, newest is not None and not same)
        if not control.trained:
            builder.check()
        return control

    @property
    def trained(self) -> bool:
        """True once training is complete."""
        return self.found is not None and runs.step_of(self.found) == self._steps

    @property
    def _steps(self) -> int:
        return self.builder.recipe.sections.training.steps

    def train(self, device: str | None, tell: Callable[[str], None]) -> Path:
        """Train the control unless it is trained already, and return its run. Raises like `Builder.train`."""
        if self.trained:
            tell("the blind control is already trained")
            return self.directory
        if self.stale:
            shutil.rmtree(self.directory)
        tell(f"training the blind control: {self._steps} steps, once for this recipe")
        reporters = (ControlReporter(tell),)
        self.builder.train(
            output=self.directory, resume=self.found is not None, device=device, reporters=reporters
        )
        return self.directory


def _with_dataset(saved: SavedPolicy) -> dict[str, Any]:
    """Return the recipe with the current paths of its datasets, relative to the recipe's directory."""
    recipe = copy.deepcopy(saved.recipe)
    home = saved.recipe_directory.resolve()
    sources = recipe["data"].get("sources") or {None: recipe["data"]}
    for name, source in sources.items():
        path = saved.dataset_path(name).resolve()
        if path != (home / source["path"]).resolve():
            source["path"] = os.path.relpath(path, home)
    return recipe


def _is_same(before: SavedPolicy, builder: Builder, saved: SavedPolicy) -> bool:
    recipe = before.content.get("provenance", {}).get("recipe_sha256")
    return recipe == builder.recipe.sha256 and before.fingerprint() == saved.fingerprint()


def _require_control(directory: Path, before: SavedPolicy) -> None:
    if not before.recipe["name"].endswith(SUFFIX) or not runs.checkpoints(directory):
        raise CheckpointError(f"{directory} holds a run that is not a blind control; move it elsewhere")
