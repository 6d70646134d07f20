"""The trained policy that a new one starts from: `policy.init` of a recipe.

Weights are taken by name and shape. Cameras, widths and robots may differ: tensors without a counterpart keep
their initial values, and the report lists them. With `statistics: keep`, the numbers behind the weights come
along: statistics, those measured between transforms, and what a head learned from its data, such as a
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...schemas.diagnostics import Diagnostic
from ...schemas.errors import PolicysmithError, RecipeError, SpecError
from ...schemas.specs import IMAGES
from ...schemas.wording import did_you_mean
from ...schemas.yaml.nodes import KeyPath
from ..data.signals import Signals, listed, order
from ..located_policy import download_policy, find_policy, policy_at
from ..planning.sources import DataPlan
from ..policy import BasePolicyModel, RecipeConfig, RecipePolicy
from ..policy.storage import saving
from ..recipe.init_cameras import PLACE as CAMERAS_PLACE
from ..recipe.init_cameras import init_cameras
from ..recipe.loaded import LoadedRecipe
from ..saved_policy import SavedPolicy
from .transfer import Transfer, changed_options, copy_weights, match_weights

StatisticsOption = Literal["keep", "recompute"]


@dataclass(frozen=True)
class KeptStatistics:
    """Keys with statistics of the trained policy, keys with those of the data, and doubts."""

    kept: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class BasePolicy:
    """A saved policy that a new one starts from."""

    given: str
    """Its name in the recipe."""
    place: KeyPath
    saved: SavedPolicy
    statistics: StatisticsOption
    allow_imports: bool = False
    hub: bool = False
    """True for a policy on a hub, whose weights may not be on this machine yet."""
    cameras: Mapping[str, str | None] = field(default_factory=dict)
    """The dataset's camera for each of its cameras, None for one that is left out; empty if all keep their names."""

    @classmethod
    def find(cls, loaded: LoadedRecipe, *, allow_imports: bool) -> BasePolicy | None:
        """Return the policy that a recipe starts from, if any. Raise RecipeError if it cannot be found."""
        init = loaded.sections.policy.init
        if init is None:
            return None
        statistics: StatisticsOption
        given, statistics = (init, "keep") if isinstance(init, str) else (init.source, init.statistics)
        place: KeyPath = ("policy", "init") if isinstance(init, str) else ("policy", "init", "from")
        try:
            saved, hub = find_policy(given, loaded.directory)
        except PolicysmithError as error:
            raise RecipeError([loaded.diagnostic(place, str(error), code="E024 bad-weights")]) from error
        cameras = init_cameras(loaded.sections)
        if found := list(_camera_faults(loaded, given, saved, cameras)):
            raise RecipeError(found)
        return cls(given, place, saved, statistics, allow_imports, hub, cameras)

    @classmethod
    def of_resumed_run(cls, loaded: LoadedRecipe, checkpoint: Path) -> BasePolicy | None:
        """Return a resumed run's own checkpoint in place of the policy that the run started from, if any."""
        init = loaded.sections.policy.init
        if init is None:
            return None
        statistics: StatisticsOption = "keep" if isinstance(init, str) else init.statistics
        return cls(str(checkpoint), ("policy", "init"), policy_at(checkpoint), statistics)

    @property
    def init_provenance(self) -> dict[str, Any] | None:
        """The saved policy's record of its own start."""
        held: dict[str, Any] | None = (self.saved.content.get("provenance") or {}).get("init")
        return held

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Record of the saved policy for provenance."""
        return {
            "from": self.given,
            "recipe_sha256": (self.saved.content.get("provenance") or {}).get("recipe_sha256"),
            "statistics": self.statistics,
            **({"cameras": dict(self.cameras)} if self.cameras else {}),
        }

    def keep_statistics(self, data: DataPlan) -> tuple[DataPlan, KeptStatistics]:
        """Return the data with the statistics that stay those of the saved policy, and a list of them.

        Statistics are kept for values with as many dimensions as before, unless the dimensions have other
        names.
        """
        kept, computed, doubts = list[str](), list[str](), list[str]()
        sources = []
        for source in data.sources:
            own = dict(source.statistics or {})
            saved = self._statistics_of(source.robot) if self.statistics == "keep" else {}
            signals = Signals.of_policy(self.saved.content, source.robot)
            renamed = {key for key, _, _ in Signals.of(source.info).pairs(signals)}
            for key, values in own.items():
                label = key if source.robot is None else f"{source.robot}.{key}"
                if key not in renamed and _same_sizes(values, saved.get(key)):
                    if _far_apart(values, saved[key]):
                        doubts.append(
                            f"`{label}` of the data lies far from what `{self.given}` was trained on; check its units, "
                            "or set `policy.init.statistics: recompute`"
                        )
                    own[key] = {**values, **saved[key]}
                    kept.append(label)
                else:
                    computed.append(label)
            sources.append(replace(source, statistics=own))
        return replace(data, sources=tuple(sources)), KeptStatistics(
            tuple(kept), tuple(computed), tuple(doubts)
        )

    def _statistics_of(self, robot: str | None) -> Mapping[str, Any]:
        content = self.saved.content
        held: Mapping[str, Any] = content.get("statistics") or {}
        if bool(content.get("robots")) != (robot is not None):
            return {}
        return held if robot is None else held.get(robot, {})

    def kept_facts(self, recipe: Mapping[str, Any], data: DataPlan) -> dict[str, Any]:
        """Return the facts that the saved policy learned from its data and that still hold.

        A transform keeps them if it and all before it are unchanged, a head if it and all transforms are.
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
        """Raise RecipeError if the saved policy has the dimensions of the data in another order."""
        for source in data.sources:
            ours = Signals.of(source.info)
            for key, own, names in ours.pairs(Signals.of_policy(self.saved.content, source.robot)):
                if order(own, names) is not None:
                    error = SpecError(
                        f"the policy in `{self.given}` has `{key}` in the order {listed(names)}, the dataset in the "
                        f"order {listed(own)}",
                        label="another order",
                        help="reorder the dataset like the policy",
                    )
                    raise RecipeError([loaded.diagnostic(self.place, error, code="E024 bad-weights")])

    def transfer(self, loaded: LoadedRecipe, policy: BasePolicyModel, *, fill: bool) -> Transfer:
        """Return what a policy takes, and with `fill` copy it.

        Raise RecipeError if weights are damaged or misfit.
        """
        try:
            source = self._load(weights=fill)
            transfer = match_weights(source, policy, self.given)
            if fill:
                copy_weights(source, policy, transfer)
            return transfer
        except PolicysmithError as error:
            raise RecipeError([loaded.diagnostic(self.place, str(error), code="E024 bad-weights")]) from error

    def _load(self, *, weights: bool) -> nn.Module:
        """Return the saved policy, if possible on the meta device unless its weights are needed."""
        self.saved.run_imports(allowed=self.allow_imports)
        if self.saved.handwritten or weights:
            if self.hub:
                download_policy(
                    self.given, [saving.CONFIG, "model*.safetensors", saving.WEIGHTS[1], f"{saving.ASSETS}/*"]
                )
            return self.saved.load()
        if not self.hub:
            saving.verify(self.saved.directory)
        config = RecipeConfig.from_pretrained(self.saved.directory)
        with torch.device("meta"):
            return RecipePolicy(config)

    def differences(self, loaded: LoadedRecipe, data: DataPlan) -> list[str]:
        """Return warnings about differences between the two policies and their data."""
        found = [
            f"{text}: weights of `{self.given}` may mean something else here"
            for text in changed_options(self.saved.recipe, loaded.resolved())
        ]
        for source in data.sources:
            ours, theirs = Signals.of(source.info), Signals.of_policy(self.saved.content, source.robot)
            if not theirs:
                whose = "" if source.robot is None else f" for `{source.robot}`"
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


def _camera_faults(
    loaded: LoadedRecipe, given: str, saved: SavedPolicy, cameras: Mapping[str, str | None]
) -> Iterator[Diagnostic]:
    """Yield the cameras of `policy.init.cameras` that the saved policy lacks, and its own that are not named."""
    known = [key.removeprefix(IMAGES) for key in saved.specs if key.startswith(IMAGES)]
    for base in cameras:
        if base not in known:
            fault = SpecError(
                f"the policy in `{given}` has no camera `{base}`",
                label="no such camera",
                help=did_you_mean(base, known, f"it has: {', '.join(known) or 'none'}"),
            )
            yield loaded.diagnostic((*CAMERAS_PLACE, base), fault, code="E024 bad-weights")
    unnamed = [name for name in known if name not in cameras]
    if cameras and unnamed:
        fault = SpecError(
            f"the policy in `{given}` also has the camera{'s' if len(unnamed) > 1 else ''} "
            f"{', '.join(f'`{name}`' for name in unnamed)}",
            label="not all of its cameras",
            help=f"name a camera of the dataset, or leave it out: `{unnamed[0]}: null`",
        )
        yield loaded.diagnostic(CAMERAS_PLACE, fault, code="E024 bad-weights")


def _same_sizes(own: Mapping[str, Any], held: Mapping[str, Any] | None) -> bool:
    if not held:
        return False
    shared = [name for name in own if name in held and isinstance(own[name], list)]
    return bool(shared) and all(np.shape(own[name]) == np.shape(held[name]) for name in shared)


def _far_apart(own: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Return whether data lies many deviations from the data behind `held`, or has a much larger spread."""
    if not {"mean", "std"} <= own.keys() & held.keys():
        return False
    spread = np.asarray(held["std"], dtype=float)
    moving = spread > 1e-6 * np.maximum(1.0, np.abs(held["mean"]))
    away = np.abs(np.subtract(own["mean"], held["mean"])) > 10.0 * spread
    return bool((moving & (away | (np.asarray(own["std"]) > 20.0 * spread))).any())


__all__ = ["BasePolicy", "KeptStatistics"]
