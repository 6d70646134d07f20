"""The plan of the data: the `data` section of a recipe, checked against its datasets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...components.images.specs import height_width
from ...schemas.diagnostics import MOST, Diagnostic, in_order
from ...schemas.errors import DatasetError, RecipeError, SpecError
from ...schemas.paths import expanded
from ...schemas.recipe import DataSection, SourceSection
from ...schemas.specs import IMAGES, Kind, Range, Spec
from ...schemas.wording import did_you_mean
from ...schemas.yaml.nodes import Key, KeyPath
from ..data.dataset import task_texts
from ..data.doctor.findings import listed as listed_episodes
from ..data.doctor.reading import readable
from ..data.frames.probing import probe_cameras
from ..data.hub import HubDataset
from ..data.lerobot.columns import column_faults, mapping_hint
from ..data.lerobot.features import ACTION, RGB_ONLY
from ..data.lerobot.info import DatasetInfo, summarize
from ..data.lerobot.layout import Layout, read_layout
from ..data.selection import matching, without_idle_starts
from ..data.splits import split_episodes
from ..data.statistics import compute_statistics, pooled_statistics, unusable
from ..data.time_steps import TimeSteps
from ..recipe import rules
from ..recipe.init_cameras import PLACE as CAMERAS_PLACE
from ..recipe.init_cameras import init_cameras
from ..recipe.loaded import LoadedRecipe
from .checks.agreement import disagreements
from .checks.unusable import without_unusable
from .frames import with_frames
from .sources import DataPlan, DataSource, common_specs

_logger = logging.getLogger(__name__)


def plan_data(loaded: LoadedRecipe, time_steps: TimeSteps) -> DataPlan:
    """Check the `data` section against its datasets. Raise RecipeError with every finding."""
    section = loaded.sections.data
    given: list[tuple[str | None, KeyPath, DataSection | SourceSection]] = [(None, ("data",), section)]
    if section.sources is not None:
        given = [(n, ("data", "sources", n), source) for n, source in sorted(section.sources.items())]
    found = rules.past_actions(loaded)
    sources = []
    for name, place, one in given:
        reader = _Reader(loaded, name, place, one, time_steps)
        if (source := reader.read()) is not None:
            sources.append(source)
        found += reader.found
    if not found and section.sources is not None:
        found += disagreements(loaded, sources)
    if found:
        raise RecipeError(in_order(found))
    sources = _pooled([_split(loaded, source) for source in with_frames(loaded, sources)])
    samples = sum(source.frames(source.training) for source in sources)
    training = sum(len(source.training) for source in sources)
    if found := rules.batch_size(loaded, samples, training, sum(len(s.info.episodes) for s in sources)):
        raise RecipeError(found)
    specs = dict(sources[0].specs) if section.sources is None else common_specs(sources)
    return without_unusable(loaded, DataPlan(time_steps, tuple(sources), specs))


class _Reader:
    """Reader of one dataset of a recipe, which collects misfits in `found`."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        name: str | None,
        place: KeyPath,
        given: DataSection | SourceSection,
        time_steps: TimeSteps,
    ) -> None:
        self.loaded, self.name, self.place, self.given = loaded, name, place, given
        self.time_steps = time_steps
        self.found: list[Diagnostic] = []

    def read(self) -> DataSource | None:
        """Return the dataset as the recipe uses it, not yet split, or None if it cannot be read."""
        given = self.given
        assert given.path is not None
        try:
            hub = HubDataset.parse(given.path)
            path = hub.download_metadata() if hub else self.loaded.directory / expanded(given.path)
            raw = read_layout(path)
            if self._lacks_init_cameras(raw):
                return None
            for fault in column_faults(raw.features, given.columns or {}, raw.modality.features):
                self.found.append(
                    self.loaded.diagnostic((*self.place, "columns"), fault, code="E023 bad-dataset")
                )
            if self.found:
                return None
            layout = read_layout(path, given.columns) if given.columns else raw
            if hub and (given.trim or given.where):
                hub.download(layout, (), [episode.index for episode in layout.episodes])
            layout = without_idle_starts(layout) if given.trim else layout
            info = summarize(layout)
        except DatasetError as error:
            self._report((*self.place, "path"), str(error))
            return None
        self._check_episodes(info)
        if not info.action_dim:
            columns = ", ".join(f"`{key}` {text}" for key, text in {**info.columns, **info.unread}.items())
            fault = SpecError(
                "the dataset has no numeric column `action`",
                label=f"it has: {columns or 'none'}",
                help=f"{mapping_hint(ACTION, info.unread)} below `{'.'.join(map(str, self.place))}`",
            )
            self._report((*self.place, "path"), fault)
        cameras = self._cameras(info)
        size, weight, robot, absent = None, 1.0, None, frozenset[str]()
        if isinstance(given, SourceSection):
            size, weight = None if given.resize is None else height_width(given.resize), given.weight
            robot = given.robot or self.name
            if isinstance(given.cameras, dict):
                absent = frozenset(name for name, own in given.cameras.items() if own is None)
        specs = _specs(info, cameras, self.time_steps, given.path)
        chosen = self._chosen(info)
        if given.where and chosen:
            try:
                chosen = matching(layout, given.where, chosen)
            except DatasetError as error:
                self._report((*self.place, "where"), str(error))
        if hub and not self.found:
            try:
                hub.download(layout, cameras.values(), chosen)
            except DatasetError as error:
                self._report((*self.place, "path"), str(error))
        return DataSource(
            self.name,
            robot,
            self.place,
            path,
            info,
            cameras,
            size,
            weight,
            specs,
            chosen,
            columns=given.columns,
            layout=layout,
            absent=absent,
            trim=given.trim is not None,
        )

    def _lacks_init_cameras(self, layout: Layout) -> bool:
        """Report the cameras in `policy.init.cameras` that the dataset does not have."""
        known = [key.removeprefix(IMAGES) for key, each in layout.features.items() if each.is_camera]
        lacking = {
            base: own
            for base, own in init_cameras(self.loaded.sections).items()
            if own is not None and own not in known
        }
        for base, own in lacking.items():
            fault = SpecError(
                f"the dataset has no camera `{own}`",
                label="no such camera",
                help=did_you_mean(own, known, f"it has: {', '.join(known) or 'none'}"),
            )
            self._report((*CAMERAS_PLACE, base), fault)
        return bool(lacking)

    def _cameras(self, info: DatasetInfo) -> dict[str, str]:
        wanted = self.given.cameras
        if wanted is None:
            for name, reason in info.unreadable.items():
                known = f"[{', '.join(info.cameras)}]"
                fault = SpecError(
                    f"camera `{name}` {reason}; {RGB_ONLY}",
                    label=f"`{name}` cannot be read",
                    help=f"name the other cameras: `cameras: {known}`",
                )
                self._report((*self.place, "path"), fault)
            return {name: name for name in info.cameras}
        pairs: list[tuple[Key, str, str]] = [(i, name, name) for i, name in enumerate(wanted)]
        if isinstance(wanted, dict):
            pairs = [(name, name, own) for name, own in wanted.items() if own is not None]
        for position, _, own in pairs:
            label = ""
            if own in info.unreadable:
                label, problem = "cannot be read", f"camera `{own}` {info.unreadable[own]}; {RGB_ONLY}"
                cure = f"leave it out; others are: {', '.join(info.cameras) or 'none'}"
            elif own not in info.cameras:
                cure = did_you_mean(own, info.cameras, f"it has: {', '.join(info.cameras) or 'none'}")
                label, problem = "no such camera", f"the dataset has no camera `{own}`"
            elif [other for _, _, other in pairs].count(own) > 1:
                label, problem = "named twice", f"camera `{own}` has two names"
                cure = "name each camera of the dataset once"
            if label:
                fault = SpecError(problem, label=label, help=cure)
                self._report((*self.place, "cameras", position), fault)
        return {name: own for _, name, own in pairs if own in info.cameras}

    def _check_episodes(self, info: DatasetInfo) -> None:
        lengths = dict(zip(info.episodes, info.episode_lengths, strict=True))
        given = list(self.given.episodes or ())
        unknown = [position for position, episode in enumerate(given) if episode not in lengths]
        for position in unknown[:MOST]:
            fault = SpecError(
                f"the dataset has no episode {given[position]}", help=f"it has {len(lengths)} episodes"
            )
            self._report((*self.place, "episodes", position), fault)
        longest = max((lengths[episode] for episode in self._chosen(info)), default=0)
        horizon = len(self.time_steps.actions)
        if longest and horizon > longest:
            whose = "" if self.name is None else f" of `{self.name}`"
            fault = SpecError(
                f"a chunk of {horizon} actions is longer than any episode{whose}",
                label=f"the longest episode{whose} has {longest} frames",
                help=f"set `data.horizon` to {longest} or less",
            )
            self._report(("data", "horizon"), fault)

    def _chosen(self, info: DatasetInfo) -> tuple[int, ...]:
        if self.given.episodes is None:
            return info.episodes
        known = set(info.episodes)
        return tuple(episode for episode in self.given.episodes if episode in known)

    def _report(self, place: KeyPath, error: SpecError | str) -> None:
        self.found.append(self.loaded.diagnostic(place, error, code="E023 bad-dataset"))


def _split(loaded: LoadedRecipe, source: DataSource) -> DataSource:
    """Return the source with its episodes split, and the statistics of the training episodes.

    It reads all numbers, and as many images as `probe_cameras` has time for.
    """
    section = loaded.sections.data
    try:
        training, validation = split_episodes(
            source.episodes, validation_fraction=section.validation, seed=section.split_seed
        )
        if section.on_bad_episode == "skip":
            good = _good_episodes(source)
            training, validation = (
                tuple(episode for episode in part if episode in good) for part in (training, validation)
            )
            source = replace(source, episodes=(*training, *validation))
        layout, table = source.table(source.episodes)
        instructions = task_texts(layout, table)
        bad = unusable(table)
        if ACTION in bad:
            raise DatasetError(f"{bad[ACTION]}. Repair the episode, or leave it out of `episodes`")
        statistics = compute_statistics(table, episodes=training, allow=bad)
        cameras = layout.choose_cameras(tuple(source.cameras.values()))
        probe_cameras(layout, cameras, layout.choose_episodes(source.episodes))
    except DatasetError as error:
        raise RecipeError([loaded.diagnostic(source.place, str(error), code="E023 bad-dataset")]) from error
    return replace(
        source,
        training=training,
        validation=validation,
        statistics=statistics,
        instructions=instructions,
        unusable=bad,
    )


def _good_episodes(source: DataSource) -> frozenset[int]:
    """Return the episodes that can be read, and log the others. Raise DatasetError if none of them can."""
    assert source.layout is not None
    good, faults = readable(source.layout, source.episodes, tuple(source.cameras.values()), source.vectors)
    for fault in faults[:MOST]:
        _logger.warning("left out %s of %s: %s", listed_episodes(fault.episodes), source.path, fault.text)
    if not good:
        raise DatasetError(f"no episode of {source.path} can be read; `policysmith data check` tells why")
    if faults:
        left = len(source.episodes) - len(good)
        _logger.warning("%d of %d episodes are left out", left, len(source.episodes))
    return frozenset(good)


def _pooled(sources: Sequence[DataSource]) -> list[DataSource]:
    """Return the sources with the statistics of their robots, over all training episodes of each."""
    by_robot: dict[str | None, list[DataSource]] = {}
    for source in sources:
        by_robot.setdefault(source.robot, []).append(source)
    pooled = {
        robot: pooled_statistics([(source.table(source.training)[1], source.training) for source in own])
        for robot, own in by_robot.items()
        if len(own) > 1
    }
    return [replace(source, statistics=pooled.get(source.robot, source.statistics)) for source in sources]


def _specs(
    info: DatasetInfo, cameras: Mapping[str, str], time_steps: TimeSteps, path: str
) -> dict[str, Spec]:
    """Return the specs of a dataset's own samples, by the policy's names."""
    steps = len(time_steps.observations)
    specs: dict[str, Spec] = {}
    for camera, own in cameras.items():
        height, width = info.cameras[own]
        dims = ("B", steps, 3, height, width)
        specs[f"{IMAGES}{camera}"] = Spec(Kind.IMAGE, dims, f"camera `{own}` of {path}", range=Range.BYTES)
    for key, dim in info.vectors.items():
        specs[key] = Spec(Kind.STATE, ("B", steps, dim), f"{_origin(key, info)} of {path}")
    specs["task"] = Spec(Kind.TEXT, ("B",), f"instructions of {path}")
    horizon = len(time_steps.actions)
    specs["action"] = Spec(Kind.ACTION, ("B", horizon, info.action_dim), f"{_origin(ACTION, info)} of {path}")
    return specs


def _origin(key: str, info: DatasetInfo) -> str:
    """Return a column, and those that it is made of."""
    _, mapped, origins = info.columns.get(key, "").partition(" from ")
    return f"`{key}`{mapped}{origins}"
