"""A trained policy on disk, before its weights are read."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModel

from ..schemas.errors import CheckpointError, PolicysmithError, RecipeError, SpecError
from ..schemas.paths import expanded
from ..schemas.recipe import DataSection, EvaluationSection
from ..schemas.specs import Spec
from ..schemas.yaml.document import from_mapping
from . import runs
from .data.robots import Robot, Robots
from .policy import BasePolicyModel
from .policy.recipe_config import MODEL_TYPE
from .policy.registration.registry import policies
from .policy.sample_pipeline import KEY
from .policy.storage import manifest
from .policy.storage.loading import FOREIGN, misread
from .policy.storage.saving import STATE, read_json
from .recipe.imports import run_imports
from .training.distributed.accelerator import require_device
from .training.state import load as load_state


@dataclass(frozen=True)
class SavedPolicy:
    """A checkpoint, and its run if it has one. It holds plain values, and can be sent to other processes."""

    directory: Path
    model_type: str
    content: Mapping[str, Any] = field(repr=False)
    """Record of its making in its config: `recipe`, `specs`, `facts`, `statistics`, `provenance`."""
    run: Path | None = None

    @classmethod
    def find(cls, path: str | Path, *, verify: bool = True) -> SavedPolicy:
        """Return the policy in a checkpoint directory, or the newest one of a run.

        Its run does not prune the checkpoint while the returned object is alive.

        Raises:
            CheckpointError: The directory holds no policy, one that is damaged or was not made from a recipe,
                or, unless `verify` is off, other files than its manifest lists.
        """
        while (pin := runs.pin(directory := _directory(expanded(path)))) is None:
            pass  # pruned meanwhile: the run has a newer one
        try:
            saved = cls._read(directory, verify=verify)
        except BaseException:
            pin.close()
            raise
        weakref.finalize(saved, pin.close)
        return saved

    @classmethod
    def _read(cls, directory: Path, *, verify: bool) -> SavedPolicy:
        if verify:
            manifest.verify(directory, without=[] if (directory / STATE).exists() else [STATE])
        config = read_json(directory / "config.json")
        handwritten = config.get("model_type") != MODEL_TYPE
        content = config.get(KEY) if handwritten else config
        named = isinstance(config.get("model_type"), str)
        if (
            not named
            or not isinstance(content, dict)
            or not content.get("recipe")
            or not content.get("specs")
        ):
            raise CheckpointError(
                f"{directory} holds a `{str(config.get('model_type'))[:80]}` that was not made from a recipe, so its "
                "observations are unknown; train it with `build-and-train`"
            )
        try:
            _check_sections(content["recipe"])
            specs = {key: Spec.from_json(spec) for key, spec in content["specs"].items()}
            Robots.from_json(content.get("robots"), specs)
            json.dumps(content.get("statistics"), allow_nan=False)
            dict(content.get("provenance") or {})
        except FOREIGN as error:
            raise misread(directory, error) from error
        run = runs.run_of(directory)
        return cls(directory, config["model_type"], content, run)

    @property
    def handwritten(self) -> bool:
        """True for a hand-written policy, False for a composed one."""
        return self.model_type != MODEL_TYPE

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        recipe: dict[str, Any] = self.content["recipe"]
        return recipe

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Specs of the dataset's samples, by key."""
        return {key: Spec.from_json(spec) for key, spec in self.content["specs"].items()}

    @cached_property
    def description(self) -> dict[str, Any]:
        """Content of the run's `run.json`; empty without a run."""
        path = self.run / runs.DESCRIPTION if self.run is not None else None
        return dict(read_json(path)) if path is not None and path.exists() else {}

    @property
    def recipe_directory(self) -> Path:
        """Directory that relative paths of the recipe start from."""
        return Path(self.description.get("recipe_directory", "."))

    @cached_property
    def robots(self) -> Robots:
        """Robots that the policy is for; empty if its data does not tell them apart."""
        return Robots.from_json(self.content.get("robots"), self.specs)

    def robot(self, embodiment: str | None) -> Robot | None:
        """Return the robot of this name, or None for a policy of one robot.

        Raise SpecError for an unknown name.
        """
        if self.robots:
            return self.robots.find(embodiment)
        if embodiment is not None:
            raise SpecError(
                f"the policy is for one robot, so `{embodiment}` cannot be chosen",
                help="leave `embodiment` out",
            )
        return None

    def data_section(self, embodiment: str | None) -> dict[str, Any]:
        """Return the `data` section of the recipe, for one of several robots with its own source."""
        section: dict[str, Any] = {"validation": 0.0, "split_seed": 0, **self.recipe["data"]}
        return section if embodiment is None else {**section, **section["sources"][embodiment]}

    def dataset_path(self, embodiment: str | None = None) -> Path:
        """Return the directory of the demonstrations at training, or in the recipe if that is gone."""
        recorded = self.description.get("data", "")
        directory = Path(recorded.get(embodiment, "") if isinstance(recorded, dict) else recorded)
        if directory.is_absolute() and directory.is_dir():
            return directory
        return self.recipe_directory / expanded(str(self.data_section(embodiment)["path"]))

    @property
    def is_newest(self) -> bool:
        """True unless its run holds a later checkpoint."""
        newest = runs.latest(self.run) if self.run is not None else None
        return newest is None or newest.resolve() == self.directory

    def fingerprint(self, embodiment: str | None = None) -> str | None:
        """Return the fingerprint of the training data, or of one robot's; None if training cannot be resumed.

        Raises:
            CheckpointError: The state of training is damaged.
        """
        if embodiment is not None:
            held: Mapping[str, str] = self.content.get("provenance", {}).get("datasets", {})
            return held.get(embodiment)
        if not (self.directory / STATE).exists():
            return None
        return cast("str", load_state(self.directory)["identity"]["data"])

    def run_imports(self, *, allowed: bool) -> None:
        """Run the files under `imports:` of its recipe, which register its class.

        Raises:
            CheckpointError: Imports are not allowed, or none of them registers the policy's class.
            RecipeError: An import fails.
        """
        entries = self.recipe.get("imports") or []
        if entries and not allowed:
            raise CheckpointError(
                f"{self.directory} needs {', '.join(f'`{entry}`' for entry in entries)}, which its recipe imports, and "
                "code does not run unless allowed; read it, then add `--allow-imports` (Python: `allow_imports=True`)"
            )
        name = str(self.directory / "config.json")
        if found := run_imports(from_mapping({"imports": entries}, name, directory=self.recipe_directory)):
            raise RecipeError(found)
        if self.handwritten and self.model_type not in policies():
            raise CheckpointError(
                f"{self.directory} holds a hand-written policy, `{self.model_type}`, that is not registered; "
                "name its file under `imports:` of its recipe"
            )

    def load(self, device: str = "cpu") -> BasePolicyModel:
        """Return the policy in evaluation mode; its imports must have run.

        Raise CheckpointError or WeightsError.
        """
        try:
            policy: Any = AutoModel.from_pretrained(self.directory, verify=False)  # `find` has verified it
        except PolicysmithError:
            raise
        except FOREIGN as error:
            raise misread(self.directory, error) from error
        loaded: BasePolicyModel = policy.to(device).eval()
        return loaded


def load(
    run_or_checkpoint: str | Path, *, device: str = "cpu", allow_imports: bool = False, verify: bool = True
) -> BasePolicyModel:
    """Load a trained policy, in evaluation mode.

    Args:
        run_or_checkpoint: A run, for its newest policy, or the directory of a checkpoint.
        device: Device of the policy.
        allow_imports: Run the files under `imports:` of its recipe, which a hand-written policy needs.
        verify: Verify the files of the policy against its manifest.

    Raises:
        CheckpointError: The directory holds no policy, it is damaged, or imports are not allowed.
        WeightsError: The weights do not fit the policy.
        RecipeError: An import fails.
    """
    saved = SavedPolicy.find(run_or_checkpoint, verify=verify)
    saved.run_imports(allowed=allow_imports)
    return saved.load(device)


def _check_sections(recipe: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for a recipe whose sections an evaluation could not read."""
    DataSection.model_validate(recipe["data"])
    if recipe.get("evaluation") is not None:
        EvaluationSection.model_validate(recipe["evaluation"])
    for key, kind in (("policy", dict), ("training", dict), ("imports", list), ("name", str)):
        if not isinstance(recipe.get(key, kind()), kind):
            raise TypeError(f"`{key}` is not a {kind.__name__}")
    if not all(isinstance(entry, str) for entry in recipe.get("imports", ())):
        raise TypeError("`imports` must name files or modules")


def _directory(path: Path) -> Path:
    """Return the directory of a checkpoint, or of a run's newest one, and repair the run's link to it."""
    path = runs.newest(path)
    if not os.path.isdir(path):  # noqa: PTH112  (`Path.is_dir` raises for a very long name)
        raise CheckpointError(f"{path} is not a directory; name a run or a checkpoint")
    if (path / "config.json").exists():
        return path.resolve()
    if (found := runs.latest(path)) is None:
        raise CheckpointError(
            f"{path} holds neither a run (checkpoints/) nor a policy (config.json); "
            "train one with `build-and-train RECIPE`"
        )
    with suppress(OSError):  # a read-only run can be used too
        runs.point(path)
    return found.resolve()


def choose_device(device: str | None) -> str:
    """Return the device; for None the best of `cpu` and `cuda`. Raise TrainingError if it does not exist."""
    if device is not None:
        require_device(device)
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
