"""A trained policy on disk, known before any of its weights is read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModel

from ..schemas.document import from_mapping
from ..schemas.errors import CheckpointError, PolicysmithError, RecipeError, SpecError, TrainingError
from ..schemas.paths import expanded
from ..schemas.recipe import DataSection, EvaluationSection
from ..schemas.specs import Spec
from . import runs
from .data.robots import Robot, Robots
from .policy import BasePolicyModel, manifest
from .policy.loading import FOREIGN, misread
from .policy.recipe_policy import MODEL_TYPE
from .policy.registry import policies
from .policy.sample_pipeline import KEY
from .policy.saving import STATE, read_json
from .recipe.imports import run_imports
from .runs import latest
from .training.state import load as load_state


@dataclass(frozen=True)
class SavedPolicy:
    """A checkpoint, and the run it belongs to where there is one. Plain values: it travels to other processes."""

    directory: Path
    model_type: str
    content: Mapping[str, Any] = field(repr=False)
    """What the config holds of its making: `recipe`, `specs`, `statistics`, `provenance`, and `facts` of its parts."""
    run: Path | None = None

    @classmethod
    def find(cls, path: str | Path, *, verify: bool = True) -> SavedPolicy:
        """The policy in a checkpoint directory, or the newest of a run directory.

        As long as this object lives, the run that it is of does not prune it.

        Raises:
            CheckpointError: there is none, it is damaged, it was not made from a recipe, or, unless `verify` is off, its
                files are not those that its manifest lists.
        """
        while (pin := runs.pin(directory := _directory(expanded(path)))) is None:
            pass  # pruned since it was found: there is a newer one
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
                f"{directory} holds a `{str(config.get('model_type'))[:80]}` that was not made from a recipe: it does not say "
                "what it observes; train it with `build-and-train`"
            )
        try:
            _check_sections(content["recipe"])
            specs = {key: Spec.from_json(spec) for key, spec in content["specs"].items()}
            Robots.from_json(content.get("robots"), specs)
            json.dumps(content.get("statistics"), allow_nan=False)
            dict(content.get("provenance") or {})
        except FOREIGN as error:
            raise misread(directory, error) from error
        run = directory.parents[1] if directory.parent.name == "checkpoints" else None
        return cls(directory, config["model_type"], content, run)

    @property
    def handwritten(self) -> bool:
        return self.model_type != MODEL_TYPE

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        recipe: dict[str, Any] = self.content["recipe"]
        return recipe

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """What the dataset gave, by key."""
        return {key: Spec.from_json(spec) for key, spec in self.content["specs"].items()}

    @cached_property
    def description(self) -> dict[str, Any]:
        """The run's `run.json`; empty where there is none."""
        path = self.run / "run.json" if self.run is not None else None
        return dict(read_json(path)) if path is not None and path.exists() else {}

    @property
    def recipe_directory(self) -> Path:
        """What relative paths of the recipe start from."""
        return Path(self.description.get("recipe_directory", "."))

    @cached_property
    def robots(self) -> Robots:
        """The robots it is for, which are none where its data tells none apart."""
        return Robots.from_json(self.content.get("robots"), self.specs)

    def robot(self, embodiment: str | None) -> Robot | None:
        """The robot called so; None for a policy of one robot. Raises SpecError for a name that says nothing here."""
        if self.robots:
            return self.robots.find(embodiment)
        if embodiment is not None:
            raise SpecError(
                f"the policy is for one robot: there is no `{embodiment}` to choose",
                help="leave `embodiment` out",
            )
        return None

    def data_section(self, embodiment: str | None) -> dict[str, Any]:
        """What the recipe says of the dataset, or of that of one of several robots."""
        section: dict[str, Any] = {"validation": 0.0, "split_seed": 0, **self.recipe["data"]}
        return section if embodiment is None else {**section, **section["sources"][embodiment]}

    def dataset_path(self, embodiment: str | None = None) -> Path:
        """Where the demonstrations were when the policy was trained, or where the recipe has them."""
        recorded = self.description.get("data", "")
        place = Path(recorded.get(embodiment, "") if isinstance(recorded, dict) else recorded)
        if place.is_absolute() and place.is_dir():
            return place
        return self.recipe_directory / expanded(str(self.data_section(embodiment)["path"]))

    @property
    def is_newest(self) -> bool:
        """Whether its run holds no later checkpoint."""
        newest = latest(self.run) if self.run is not None else None
        return newest is None or newest.resolve() == self.directory

    def fingerprint(self, embodiment: str | None = None) -> str | None:
        """Fingerprint of the data it was trained on, where the checkpoint can still be resumed from, or of one robot's.

        Raises CheckpointError for a damaged state of training.
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
            CheckpointError: they are not allowed, or afterwards the policy's class is still unknown.
            RecipeError: one of them failed.
        """
        entries = self.recipe.get("imports") or []
        if entries and not allowed:
            raise CheckpointError(
                f"{self.directory} needs {', '.join(f'`{entry}`' for entry in entries)}, which its recipe imports: no "
                "code runs unless it is told to; read it, then add `--allow-imports` (Python: `allow_imports=True`)"
            )
        name = str(self.directory / "config.json")
        if found := run_imports(from_mapping({"imports": entries}, name, directory=self.recipe_directory)):
            raise RecipeError(found)
        if self.handwritten and self.model_type not in policies():
            raise CheckpointError(
                f"{self.directory} holds a hand-written policy, `{self.model_type}`, that nothing registers; "
                "name its file under `imports:` of its recipe"
            )

    def load(self, device: str = "cpu") -> BasePolicyModel:
        """The policy in evaluation mode. Its imports must have run. Raises CheckpointError, WeightsError."""
        try:
            policy: Any = AutoModel.from_pretrained(self.directory, verify=False)  # `find` did
        except PolicysmithError:
            raise
        except FOREIGN as error:
            raise misread(self.directory, error) from error
        loaded: BasePolicyModel = policy.to(device).eval()
        return loaded


def _check_sections(recipe: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError for a recipe that does not say what an evaluation looks up, in its form."""
    DataSection.model_validate(recipe["data"])
    if recipe.get("evaluation") is not None:
        EvaluationSection.model_validate(recipe["evaluation"])
    for key, kind in (("policy", dict), ("training", dict), ("imports", list), ("name", str)):
        if not isinstance(recipe.get(key, kind()), kind):
            raise TypeError(f"`{key}` is no {kind.__name__}")
    if not all(isinstance(entry, str) for entry in recipe.get("imports", ())):
        raise TypeError("`imports` must name files or modules")


def _directory(path: Path) -> Path:
    """The directory of a checkpoint, or of the newest one of a run, whose link to it is repaired. Raises CheckpointError."""
    path = runs.newest(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is no directory; name a run or a checkpoint")
    if (path / "config.json").exists():
        return path.resolve()
    if (found := runs.latest(path)) is None:
        raise CheckpointError(
            f"{path} holds neither a run (checkpoints/) nor a policy (config.json); "
            "train one with `build-and-train RECIPE`"
        )
    with suppress(OSError):  # a run that is read-only is used all the same
        runs.point(path)
    return found.resolve()


def choose_device(device: str | None) -> str:
    """`cpu` or `cuda`; None is the best there is. Raises TrainingError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("this machine shows no CUDA device; use `cpu`")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
