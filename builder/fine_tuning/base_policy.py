"""A trained policy that a new one starts from: `policy.init` of a recipe.

Weights are taken by name and shape. Cameras, widths and robots may differ: what has no counterpart begins anew, and the
report says so. With `statistics: keep`, what comes with the weights in numbers comes along: statistics, those measured
between transforms, and what a head learned from its data, such as a vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import nn

from ...schemas.errors import CheckpointError, PolicysmithError, RecipeError, SpecError
from ...schemas.nodes import KeyPath
from ...schemas.paths import exists, expanded
from ..planning.sources import DataPlan
from ..policy import BasePolicyModel, RecipeConfig, RecipePolicy, saving
from ..recipe.load import LoadedRecipe
from ..signals import Signals, listed, order
from .transfer import Taken, copy, differences, match

if TYPE_CHECKING:
    from ..saved_policy import SavedPolicy

_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
Statistics = Literal["keep", "recompute"]


@dataclass(frozen=True)
class Kept:
    """Keys whose statistics stay as the weights know them, keys that have those of the data, and doubts about that."""

    kept: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """The saved policy that a new one starts from, and the fate of its statistics."""

    given: str
    """As the recipe names it."""
    place: KeyPath
    saved: SavedPolicy
    statistics: Statistics
    allow_imports: bool = False
    hub: bool = False
    """True for a policy on a hub, whose weights may not be here yet."""

    @classmethod
    def find(cls, loaded: LoadedRecipe, *, allow_imports: bool) -> Start | None:
        """The policy that a recipe starts from, if any. Raises RecipeError where there is none at its place."""
        init = loaded.recipe.policy.init
        if init is None:
            return None
        statistics: Statistics
        given, statistics = (init, "keep") if isinstance(init, str) else (init.source, init.statistics)
        place: KeyPath = ("policy", "init") if isinstance(init, str) else ("policy", "init", "from")
        path = loaded.directory / expanded(given)
        hub = not exists(path) and _HUB.fullmatch(given) is not None
        try:
            saved = _saved(_snapshot(given, [saving.CONFIG]) if hub else path)
        except PolicysmithError as error:
            raise RecipeError([loaded.diagnostic(place, str(error), code="E024 bad-weights")]) from error
        return cls(given, place, saved, statistics, allow_imports, hub)

    @classmethod
    def resumed(cls, loaded: LoadedRecipe, checkpoint: Path) -> Start | None:
        """As `find`, for a run that goes on: what it started from is in its own checkpoint."""
        init = loaded.recipe.policy.init
        if init is None:
            return None
        statistics: Statistics = "keep" if isinstance(init, str) else init.statistics
        return cls(str(checkpoint), ("policy", "init"), _saved(checkpoint), statistics)

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Record that the saved policy keeps of its own start."""
        held: dict[str, Any] | None = (self.saved.content.get("provenance") or {}).get("init")
        return held

    def over(self, data: DataPlan) -> tuple[DataPlan, Kept]:
        """The data with the statistics that stay, and which these are.

        Statistics stay of what the data gives in as many dimensions, and under no other names.
        """
        kept, computed, doubts = list[str](), list[str](), list[str]()
        sources = []
        for source in data.sources:
            own = dict(source.statistics or {})
            held = self._statistics_of(source.name) if self.statistics == "keep" else {}
            signals = Signals.of_policy(self.saved.content, source.name)
            renamed = {key for key, _, _ in Signals.of(source.info).pairs(signals)}
            for key, values in own.items():
                label = key if source.name is None else f"{source.name}.{key}"
                if key not in renamed and _same_sizes(values, held.get(key)):
                    if _far(values, held[key]):
                        doubts.append(
                            f"`{label}` of the data lies far from what `{self.given}` was trained on: its units may "
                            "differ, or set `policy.init.statistics: recompute`"
                        )
                    own[key] = {**values, **held[key]}
                    kept.append(label)
                else:
                    computed.append(label)
            sources.append(replace(source, statistics=own))
        return replace(data, sources=tuple(sources)), Kept(tuple(kept), tuple(computed), tuple(doubts))

    def _statistics_of(self, robot: str | None) -> Mapping[str, Any]:
        content = self.saved.content
        held: Mapping[str, Any] = content.get("statistics") or {}
        if bool(content.get("robots")) != (robot is not None):
            return {}
        return held if robot is None else held.get(robot, {})

    def facts(self, recipe: Mapping[str, Any], data: DataPlan) -> dict[str, Any]:
        """Facts of the saved policy's transforms and head that hold for this recipe: those that its data taught them.

        A transform keeps them where all up to it are as they were, a head where it and all transforms are.
        """
        if self.statistics != "keep" or self.saved.handwritten or "head" not in recipe["policy"]:
            return {}
        before, held = self.saved.recipe, self.saved.content.get("facts") or {}
        shapes = {key: list(spec.dims) for key, spec in data.specs.items()}
        if shapes.get("action") != list(self.saved.specs["action"].dims):
            return {}
        found: dict[str, Any] = {}
        ours, theirs = recipe["transforms"], before["transforms"]
        for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                return found
            found[f"transforms.{index}"] = held.get(f"transforms.{index}", {})
        if len(ours) == len(theirs) and recipe["policy"]["head"] == before["policy"]["head"]:
            found["policy.head"] = held.get("policy.head", {})
        return found

    def refuse_other_order(self, loaded: LoadedRecipe, data: DataPlan) -> None:
        """Raises RecipeError where the saved policy knows the dimensions of the data in another order."""
        for source in data.sources:
            ours = Signals.of(source.info)
            for key, own, names in ours.pairs(Signals.of_policy(self.saved.content, source.name)):
                if order(own, names) is not None:
                    error = SpecError(
                        f"the policy in `{self.given}` has `{key}` in the order {listed(names)}, the dataset in the "
                        f"order {listed(own)}",
                        label="another order",
                        help="bring the dataset into the order of the policy",
                    )
                    raise RecipeError([loaded.diagnostic(self.place, error, code="E024 bad-weights")])

    def take(self, loaded: LoadedRecipe, policy: BasePolicyModel, *, fill: bool) -> Taken:
        """Return what a policy takes, filled in where asked. Raise RecipeError for weights that are damaged or do not fit."""
        try:
            source = self._source(weights=fill)
            taken = match(source, policy, self.given)
            if fill:
                copy(source, policy, taken)
            return taken
        except PolicysmithError as error:
            raise RecipeError([loaded.diagnostic(self.place, str(error), code="E024 bad-weights")]) from error

    def _source(self, *, weights: bool) -> nn.Module:
        """The saved policy; on the meta device where its weights are not asked for and its class allows it."""
        self.saved.run_imports(allowed=self.allow_imports)
        if self.saved.handwritten or weights:
            if self.hub:
                _snapshot(
                    self.given, [saving.CONFIG, "model*.safetensors", saving.WEIGHTS[1], f"{saving.ASSETS}/*"]
                )
            return self.saved.load()
        if not self.hub:
            saving.verify(self.saved.directory)
        config = RecipeConfig.from_pretrained(self.saved.directory)
        with torch.device("meta"):
            return RecipePolicy(config)

    def report(self, loaded: LoadedRecipe, data: DataPlan, taken: Taken, kept: Kept) -> list[str]:
        """Lines for a person: what is taken, what is new, what is left, and in what the two policies differ."""
        lines = [f"starts from {self.given}: {taken.summary}", *taken.lines]
        lines += [f"  statistics kept: {', '.join(kept.kept)}"] if kept.kept else []
        lines += [f"  statistics of the data: {', '.join(kept.computed)}"] if kept.computed else []
        lines += [f"warning: {text}" for text in (*kept.doubts, *self._warnings(loaded, data))]
        return lines

    def _warnings(self, loaded: LoadedRecipe, data: DataPlan) -> list[str]:
        found = [
            f"{text}: weights of `{self.given}` may mean something else here"
            for text in differences(self.saved.recipe, loaded.resolved())
        ]
        for source in data.sources:
            ours, theirs = Signals.of(source.info), Signals.of_policy(self.saved.content, source.name)
            if not theirs:
                whose = "" if source.name is None else f" for `{source.name}`"
                found.append(
                    f"`{self.given}` holds no names and no rate{whose}, so the order is not compared"
                )
                continue
            if ours.other_rate(theirs):
                found.append(
                    f"`{self.given}` was trained at {theirs.fps:g} frames per second, the data has {ours.fps:g}"
                )
            found += [
                f"`{key}` is {listed(own)} in the data and {listed(names)} in `{self.given}`"
                for key, own, names in ours.pairs(theirs)
            ]
        return found

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Record of the saved policy for provenance."""
        return {
            "from": self.given,
            "recipe_sha256": (self.saved.content.get("provenance") or {}).get("recipe_sha256"),
            "statistics": self.statistics,
        }


def _saved(path: Path) -> SavedPolicy:
    from ..saved_policy import SavedPolicy

    if not exists(path):
        raise CheckpointError(
            f"there is no policy at {path}; name a checkpoint or a run relative to the recipe's directory, or a policy "
            "on the hub as `<owner>/<name>`"
        )
    config = path / saving.CONFIG
    if config.is_file() and {"type", "input_features"} <= saving.read_json(config).keys():
        raise CheckpointError(
            f"{path} is a policy of LeRobot; bring it over first: `policysmith import-lerobot {path} --data DATASET "
            "--output DIR`, and name DIR"
        )
    return SavedPolicy.find(path)


def _snapshot(name: str, patterns: list[str]) -> Path:
    """The files of a policy on a hub that match the patterns, on this machine. Raises CheckpointError."""
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=HF_HUB_OFFLINE))
    except Exception as error:
        where = "in the cache of the hub (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else "on the hub"
        raise CheckpointError(
            f"there is no directory `{name}` beside the recipe, and no such policy {where}: {type(error).__name__}"
        ) from error


def _same_sizes(own: Mapping[str, Any], held: Mapping[str, Any] | None) -> bool:
    if not held:
        return False
    shared = [name for name in own if name in held and isinstance(own[name], list)]
    return bool(shared) and all(np.shape(own[name]) == np.shape(held[name]) for name in shared)


def _far(own: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Return True for data many deviations away from those that statistics were taken of, or spread otherwise."""
    if not {"mean", "std"} <= own.keys() & held.keys():
        return False
    spread = np.asarray(held["std"], dtype=float)
    moving = spread > 1e-6 * np.maximum(1.0, np.abs(held["mean"]))
    away = np.abs(np.subtract(own["mean"], held["mean"])) > 10.0 * spread
    return bool((moving & (away | (np.asarray(own["std"]) > 20.0 * spread))).any())


__all__ = ["Kept", "Start"]
