"""From a loaded recipe to a plan: dataset, parts and every size, checked together before anything is allocated."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schemas.diagnostics import Diagnostic, ErrorCode, in_order
from ..schemas.errors import DatasetError, RecipeError, SpecError
from ..schemas.recipe import ComposedPolicySection
from ..schemas.specs import Kind, Range, Spec, Specs
from .data.dataset import inspect
from .data.info import DatasetInfo
from .data.layout import read_layout
from .data.splits import split_episodes
from .data.statistics import compute_statistics
from .data.table import read_table
from .data.windows import windows as numeric_windows
from .measure import measure
from .recipe import LoadedRecipe
from .wiring import Parts, Problem, Site, Wiring, WiringError, look_up, wire, with_statistics

IMAGES = "observation.images."


@dataclass(frozen=True)
class Windows:
    """Time steps of a sample, relative to its frame."""

    observations: Sequence[int]
    actions: Sequence[int]


@dataclass(frozen=True)
class DataPlan:
    """The demonstrations a recipe uses."""

    path: Path
    info: DatasetInfo
    windows: Windows
    cameras: tuple[str, ...]
    training: tuple[int, ...]
    validation: tuple[int, ...]
    statistics: dict[str, Any]
    specs: dict[str, Spec]

    def numbers(self) -> Iterator[dict[str, Any]]:
        """States and actions of all training samples, in batches, without images."""
        layout = read_layout(self.path)
        table = read_table(layout, layout.choose_episodes(self.training))
        return numeric_windows(table, self.windows.observations, self.windows.actions)


@dataclass(frozen=True)
class PolicyPlan:
    """A composed policy, wired."""

    parts: Parts
    facts: dict[str, dict[str, Any]]
    wiring: Wiring

    def sites(self) -> Iterator[tuple[Site, Specs]]:
        """Every part with weights or a transform to run, and its inputs."""
        parts, wiring = self.parts, self.wiring
        yield from ((site, wiring.into(index)) for index, site in enumerate(parts.transforms))
        yield from ((site, wiring.reads[name]) for name, site in parts.backbones.items())
        yield from ((parts.necks[name], inputs) for name, inputs in wiring.necks.items())
        yield parts.head, {**wiring.features, **wiring.given}


def plan_data(loaded: LoadedRecipe, windows: Windows) -> DataPlan:
    """Hold the recipe's `data` section against the dataset. Raises RecipeError."""
    section = loaded.recipe.data
    path = loaded.directory / section.path
    try:
        info = inspect(path)
    except DatasetError as error:
        raise RecipeError(
            [loaded.diagnostic(("data", "path"), str(error), code="E023 bad-dataset")]
        ) from error

    found: list[Diagnostic] = []

    def report(where: tuple[str | int, ...], error: SpecError, code: ErrorCode = "E023 bad-dataset") -> None:
        found.append(loaded.diagnostic(where, error, code=code))

    for position, camera in enumerate(section.cameras or ()):
        if camera not in info.cameras:
            near = difflib.get_close_matches(camera, info.cameras, n=1)
            cure = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(info.cameras) or 'none'}"
            fault = SpecError(f"the dataset has no camera `{camera}`", label="no such camera", help=cure)
            report(("data", "cameras", position), fault)
    lengths = dict(zip(info.episodes, info.episode_lengths, strict=True))
    for position, episode in enumerate(section.episodes or ()):
        if episode not in lengths:
            fault = SpecError(f"the dataset has no episode {episode}", help=f"it has {len(lengths)} episodes")
            report(("data", "episodes", position), fault)
    chosen = [e for e in section.episodes or info.episodes if e in lengths]
    longest = max((lengths[episode] for episode in chosen), default=0)
    if chosen and len(windows.actions) > longest:
        fault = SpecError(
            f"a chunk of {len(windows.actions)} actions is longer than any episode",
            label=f"the longest episode has {longest} frames",
            help=f"set `data.horizon` to {longest} or less",
        )
        report(("data", "horizon"), fault)
    if not info.action_dim:
        report(("data", "path"), SpecError("the dataset has no `action` column"))
    if found:
        raise RecipeError(in_order(found))

    try:
        training, validation = split_episodes(
            chosen, validation_fraction=section.validation, seed=section.split_seed
        )
        layout = read_layout(path)
        statistics = compute_statistics(read_table(layout, layout.choose_episodes(training)))
    except DatasetError as error:
        raise RecipeError([loaded.diagnostic(("data",), str(error), code="E023 bad-dataset")]) from error
    samples, batch = sum(lengths[episode] for episode in training), loaded.recipe.training.batch_size
    if batch > samples:
        fault = SpecError(
            f"a batch of {batch} samples is more than the {samples} of the training episodes",
            label=f"{samples} frames in {len(training)} of {len(info.episodes)} episodes",
            help=f"set `training.batch_size` to {samples} or less, or train on more episodes",
        )
        raise RecipeError([loaded.diagnostic(("training", "batch_size"), fault, code="E023 bad-dataset")])
    cameras = tuple(section.cameras or info.cameras)
    specs = _specs(info, cameras, windows, section.path)
    return DataPlan(path, info, windows, cameras, training, validation, dict(statistics), specs)


def plan_policy(loaded: LoadedRecipe, data: DataPlan) -> PolicyPlan:
    """Wire a composed policy to its data. Raises RecipeError with every clash, at both of its places."""
    assert isinstance(loaded.recipe.policy, ComposedPolicySection)
    assert loaded.head is not None
    parts = Parts(
        collator=Site(("collator",), *loaded.collator),
        transforms=transform_sites(loaded),
        backbones={
            name: Site(("policy", "backbones", name), *pair) for name, pair in loaded.backbones.items()
        },
        necks={name: Site(("policy", "necks", name), *pair) for name, pair in loaded.necks.items()},
        head=Site(("policy", "head"), *loaded.head),
    )
    found = check_execute(loaded, len(data.windows.actions))
    try:
        facts = look_up(parts, loaded.directory)
        way = [parts.collator, *parts.transforms]
        facts = measure(way, data.specs, facts, data.statistics, data.numbers)
        wiring = wire(parts, data.specs, with_statistics(facts, parts.transforms, data.statistics))
    except WiringError as error:
        found += [locate(loaded, problem) for problem in error.problems]
        raise RecipeError(in_order(found)) from error
    if found:
        raise RecipeError(found)
    return PolicyPlan(parts, facts, wiring)


def transform_sites(loaded: LoadedRecipe) -> list[Site]:
    """The transforms of a recipe, in order."""
    return [Site(("transforms", i), *pair) for i, pair in enumerate(loaded.transforms)]


def check_execute(loaded: LoadedRecipe, horizon: int) -> list[Diagnostic]:
    """A finding where more actions are to be executed than a chunk has."""
    execute = loaded.recipe.policy.execute
    if execute is None or execute <= horizon:
        return []
    error = SpecError(
        f"cannot execute {execute} actions of a chunk of {horizon}",
        label=f"a chunk has {horizon}",
        help="lower `policy.execute` or raise `data.horizon`",
    )
    related = (
        [(("data", "horizon"), f"{horizon} actions")]
        if "horizon" in loaded.recipe.data.model_fields_set
        else []
    )
    return [loaded.diagnostic(("policy", "execute"), error, code="E021 dim-mismatch", related=related)]


def locate(loaded: LoadedRecipe, problem: Problem) -> Diagnostic:
    """A wiring problem as a diagnostic with all its places."""
    return loaded.diagnostic(problem.path, problem.error, code=problem.code, related=problem.also)


def _specs(info: DatasetInfo, cameras: Sequence[str], windows: Windows, name: str) -> dict[str, Spec]:
    steps = len(windows.observations)
    specs: dict[str, Spec] = {}
    for camera in cameras:
        height, width = info.cameras[camera]
        specs[f"{IMAGES}{camera}"] = Spec(
            Kind.IMAGE,
            ("B", steps, 3, height, width),
            f"camera `{camera}` of {name}",
            range=Range.BYTES,
        )
    for key, dim in info.vectors.items():
        specs[key] = Spec(Kind.STATE, ("B", steps, dim), f"`{key}` of {name}")
    specs["task"] = Spec(Kind.TEXT, ("B",), f"instructions of {name}")
    horizon = len(windows.actions)
    specs["action"] = Spec(Kind.ACTION, ("B", horizon, info.action_dim), f"`action` of {name}")
    return specs


def specs_to_json(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Specs as `config.json` holds them."""
    return {key: spec.to_json() for key, spec in specs.items()}
