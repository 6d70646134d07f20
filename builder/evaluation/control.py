"""The control of a closed-loop evaluation: the same recipe, trained and judged without cameras.

On many tasks a policy that sees nothing succeeds half of the time, so a success rate alone proves little.
"""

from __future__ import annotations

import copy
import fnmatch
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...components.images import ImageTransform
from ...components.registry import BACKBONES, HEADS, TRANSFORMS
from ...schemas.errors import CheckpointError, RegistryError, SpecError
from ...schemas.specs import Kind
from ..builder import Builder
from ..policy.dynamic import forget
from ..training.checkpoint import checkpoints, latest
from .needs import IMAGES
from .saved import SavedPolicy

SUFFIX = "_blind"


def blind(recipe: Mapping[str, Any], parameters: Iterable[str] = ()) -> dict[str, Any]:
    """The resolved recipe without what is there for cameras, named `<name>_blind`.

    Image backbones go, with what the head reads of them and the size it expects of them, and so do transforms of
    images. The dataset still holds its cameras; nothing reads them. Patterns of `policy.freeze` and of
    `training.optimizer.groups` go when they match only what went: given the names of the policy's `parameters`
    that is exact, otherwise it is judged by the name of the backbone they begin with.

    Raises:
        SpecError: the policy is hand-written, sees no image, or has nothing left to read.
    """
    unseeing: dict[str, Any] = copy.deepcopy(dict(recipe))
    policy = unseeing["policy"]
    if policy["type"] != "composed":
        raise SpecError(
            f"`{policy['type']}` is hand-written, and what of it sees images is not known",
            help="set `evaluation.control` to `none`, or train a blind variant by hand",
        )
    backbones: dict[str, Any] = policy["backbones"]
    gone = {name for name, raw in backbones.items() if BACKBONES.get(raw["type"]).kind is Kind.IMAGE}
    if not gone:
        raise SpecError(
            "the policy sees no image, so it is its own blind control", help="set `control` to `none`"
        )
    kept = {name: raw for name, raw in backbones.items() if name not in gone}
    head: dict[str, Any] = policy["head"]
    reads = head.get("reads")
    if reads is not None:
        head["reads"] = [entry for entry in reads if entry.partition(".")[0] not in gone]
    if not kept or head.get("reads") == []:
        raise SpecError(
            "without cameras nothing is left for the head to read, so there is no blind control",
            help="set `evaluation.control` to `none`, or let the policy read the robot's state as well",
        )
    if "in_dim" in HEADS.get(head["type"]).Config.model_fields:
        head["in_dim"] = None
    policy["backbones"] = kept
    names = [name for name in parameters if not any(name.startswith(f"backbones.{lost}.") for lost in gone)]

    def survives(pattern: str) -> bool:
        if names:
            return bool(fnmatch.filter(names, pattern))
        return not any(pattern.startswith(f"backbones.{lost}.") for lost in gone)

    policy["freeze"] = [pattern for pattern in policy["freeze"] if survives(pattern)]
    optimizer = unseeing["training"]["optimizer"]
    optimizer["groups"] = {
        pattern: group for pattern, group in optimizer["groups"].items() if survives(pattern)
    }
    unseeing["transforms"] = [
        left for raw in unseeing["transforms"] if (left := _without_images(raw)) is not None
    ]
    if unseeing.get("evaluation"):
        unseeing["evaluation"]["control"] = "none"
    unseeing["name"] += SUFFIX
    unseeing["output"] = None
    return unseeing


def _without_images(raw: dict[str, Any]) -> dict[str, Any] | None:
    if issubclass(TRANSFORMS.get(raw["type"]), ImageTransform):
        return None
    keys = raw.get("keys")
    if not isinstance(keys, list):
        return raw
    left = [key for key in keys if not str(key).startswith(IMAGES)]
    return {**raw, "keys": left} if left else None


class ControlReporter:
    """Tells of the control's training about ten times."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._steps, self._shown = tell, 1, 0

    def start(self, step: int, steps: int) -> None:
        self._steps = steps

    def advance(self, step: int) -> None:
        """Nothing to tell."""

    def log(self, step: int, values: dict[str, float]) -> None:
        if (tenth := 10 * step // self._steps) > self._shown:
            self._shown = tenth
            self._tell(f"training the blind control: step {step} of {self._steps}, loss {values['loss']:.4f}")

    def note(self, message: str) -> None:
        """Nothing to tell."""

    def close(self) -> None:
        """Nothing to end."""


def train_control(
    saved: SavedPolicy,
    parameters: Iterable[str],
    directory: Path,
    *,
    device: str | None,
    allow_imports: bool,
    tell: Callable[[str], None],
) -> Path:
    """A finished run of the blind recipe in `directory`: an earlier one of the same recipe and data, or a new one.

    Raises:
        SpecError: as `blind`.
        CheckpointError: `directory` holds something that is no blind control.
        RecipeError, TrainingError: the control cannot be built or trained.
    """
    recipe = blind(_absolute(saved), parameters)
    builder = Builder.from_recipe(recipe, allow_imports=allow_imports)
    newest = latest(directory) if directory.is_dir() else None
    if newest is not None:
        before = SavedPolicy.find(newest)
        same_recipe = before.content.get("provenance", {}).get("recipe_sha256") == builder.recipe.sha256
        if same_recipe and before.fingerprint() == saved.fingerprint():
            if newest.name == f"step-{recipe['training']['steps']:08d}":
                tell("the blind control is trained already")
                return directory
        else:
            _discard(directory, before)
            newest = None
    tell(f"training the blind control: {recipe['training']['steps']} steps, once for this recipe")
    try:
        builder.train(
            output=directory, resume=newest is not None, device=device, reporters=(ControlReporter(tell),)
        )
    finally:
        _forget(recipe["name"])
    return directory


def _absolute(saved: SavedPolicy) -> dict[str, Any]:
    """The recipe with its paths made independent of where it lay."""
    recipe = copy.deepcopy(saved.recipe)
    home = saved.recipe_directory.resolve()
    recipe["data"]["path"] = saved.description.get("data") or str(home / recipe["data"]["path"])
    recipe["imports"] = [
        str(home / entry) if entry.endswith(".py") else entry for entry in recipe.get("imports") or []
    ]
    return recipe


def _discard(directory: Path, before: SavedPolicy) -> None:
    if not before.recipe["name"].endswith(SUFFIX) or not checkpoints(directory):
        raise CheckpointError(f"{directory} holds a run that is no blind control; move it elsewhere")
    shutil.rmtree(directory)


def _forget(name: str) -> None:
    try:
        forget(name)
    except RegistryError:
        return
