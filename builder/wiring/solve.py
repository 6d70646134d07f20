"""The wiring of a recipe's parts: which output feeds which input, and every size along the way.

`wire` is pure: it reads configs and specs and allocates nothing. It wires a recipe before it is built, and a
saved policy when it is loaded. Problems are collected, each with the recipe path of its part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ...components.base import Backbone, Facts, Transform
from ...components.vectors.specs import with_bounds
from ...schemas.diagnostics import ErrorCode
from ...schemas.errors import PolicysmithError, WeightsError
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ...schemas.yaml.nodes import KeyPath
from .features import check_names, head_inputs, origins, wire_necks
from .parts import Parts, Problem, Site, WiringError, as_spec_error, because


@dataclass(frozen=True)
class Wiring:
    """Every edge of a composed policy."""

    observations: Specs
    """Samples of the dataset, `action` included."""
    collated: Specs
    """Batches after the collator."""
    transformed: Sequence[Specs]
    """Batches after each transform."""
    reads: Mapping[str, Specs]
    """Inputs of each backbone."""
    necks: Mapping[str, Specs]
    """Features that each neck reads, in an order that can be computed."""
    outputs: Mapping[str, Sequence[str]]
    """Outputs that other parts read, by backbone and neck."""
    features: Specs
    """Features that the head reads, by `<part>.<output>`."""
    given: Specs
    """Other specs that the head knows: of the actions and, for several robots, of the embodiments."""
    action: Spec
    """Actions that the head predicts."""
    facts: Mapping[str, Facts] = field(default_factory=dict)

    def into_neck(self, name: str) -> Specs:
        """Return the inputs of a neck and, for several robots, the spec of the embodiments."""
        robots = {key: spec for key, spec in self.given.items() if spec.kind is Kind.EMBODIMENT}
        return {**self.necks[name], **robots}

    def into(self, index: int) -> Specs:
        """Return the inputs of transform `index`; one past the last, those of backbones and head."""
        return self.transformed[index - 1] if index else self.collated


def look_up_facts(sites: Iterable[Site], directory: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the facts that parts look up outside the recipe, by part.

    Raise WiringError with all that fail.
    """
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for site in sites:
        try:
            facts = site.part.facts(site.resolved_config(directory))
        except WeightsError as error:
            problems.append(Problem(site.location, as_spec_error(error), code="E024 bad-weights"))
            continue
        except PolicysmithError as error:
            problems.append(Problem(site.path, as_spec_error(error)))
            continue
        if facts:
            found[site.key] = facts
    if problems:
        raise WiringError(problems)
    return found


def with_statistics(
    facts: Mapping[str, Facts], readers: Iterable[Site], statistics: Mapping[str, Any]
) -> dict[str, Facts]:
    """Return the facts of all parts, with the dataset's statistics added to those of each reader."""
    return {**facts, **{s.key: {**facts.get(s.key, {}), "statistics": statistics} for s in readers}}


def wire(parts: Parts, observations: Specs, facts: Mapping[str, Facts]) -> Wiring:
    """Return every edge of a policy. Raise WiringError with every problem found."""
    stages = wire_samples([parts.collator, *parts.transforms], observations, facts)
    current = stages[-1].specs
    problems: list[Problem] = []
    reads: dict[str, Specs] = {}
    published: dict[str, Specs] = {}
    for name, site in parts.backbones.items():
        backbone, config = cast(type[Backbone], site.part), cast(BackboneConfig, site.config)
        code: ErrorCode = "E022 missing-input"
        try:
            reads[name] = backbone.reads(config, current)
            code = "E021 dim-mismatch"
            published[name] = backbone.specs(config, reads[name], facts.get(site.key, {}))
        except PolicysmithError as error:
            problems.append(_problem(site, error, stages, code))

    check_names(parts, problems)
    robots = {key: spec for key, spec in current.items() if spec.kind is Kind.EMBODIMENT}
    necks = wire_necks(parts, published, robots, facts, problems)
    features = head_inputs(parts, published, problems)
    if problems:
        raise WiringError(problems)
    given = {**robots, **{key: spec for key, spec in current.items() if spec.kind is Kind.ACTION}}
    try:
        head_facts = facts.get(parts.head.key, {})
        action = parts.head.part.specs(parts.head.config, {**features, **given}, head_facts)["action"]
    except PolicysmithError as error:
        found = as_spec_error(error)
        also = origins(parts, features)
        if found.source == "action" and found.trait == "range":
            raise WiringError([_problem(parts.head, found, stages, "E021 dim-mismatch")]) from error
        if found.source == "action":
            also = [(("data", "horizon"), f"`action` is {given['action']}")]
        raise WiringError([Problem(parts.head.path, found, also, "E021 dim-mismatch")]) from error
    read = dict.fromkeys(key for specs in (*necks.values(), features) for key in specs)
    asked = {name: [key.split(".")[1] for key in read if key.split(".")[0] == name] for name in parts.sources}
    collated, *after = [stage.specs for stage in stages[1:]]
    return Wiring(observations, collated, after, reads, necks, asked, features, given, action, facts)


@dataclass(frozen=True)
class Stage:
    """Specs of samples after one step, and the place of that step in the recipe."""

    path: KeyPath
    specs: Specs


def wire_samples(sites: Sequence[Site], observations: Specs, facts: Mapping[str, Facts]) -> list[Stage]:
    """Return the specs of the data, and after each collator or transform. Raise WiringError.

    Observations are sorted by name, as in a saved config.
    """
    known = facts.get(sites[0].key, {}) if sites else {}
    stages = [Stage(("data", "path"), with_bounds(dict(sorted(observations.items())), known))]
    for site in sites:
        inputs = stages[-1].specs
        try:
            stages.append(Stage(site.path, site.part.specs(site.config, inputs, facts.get(site.key, {}))))
        except PolicysmithError as error:
            raise WiringError([_problem(site, error, stages, "E021 dim-mismatch")]) from error
    return stages


def remarks(
    transforms: Sequence[Site], inputs: Sequence[Specs], facts: Mapping[str, Facts]
) -> list[tuple[KeyPath, str]]:
    """Return the remarks of transforms about the data, each with its place; `inputs` are theirs, in order."""
    return [
        (site.path, remark)
        for site, specs in zip(transforms, inputs, strict=True)
        for remark in cast(type[Transform], site.part).remarks(site.config, specs, facts.get(site.key, {}))
    ]


def required_keys(parts: Parts, wiring: Wiring, without: Collection[str] = ()) -> set[str]:
    """Return the keys, after the collator, that transforms need or that backbones outside `without` read."""
    wanted = {key for name, inputs in wiring.reads.items() if name not in without for key in inputs}
    for index, site in reversed(list(enumerate(parts.transforms))):
        inputs = wiring.into(index)
        wanted = (wanted & inputs.keys()) | {*cast(type[Transform], site.part).needs(site.config, inputs)}
    return wanted


def keys_before_transforms(parts: Parts, wiring: Wiring, backbones: Iterable[str]) -> list[set[str]]:
    """Return the keys that these backbones depend on: before each transform and, last, after all of them."""
    wanted = {key for name in backbones for key in wiring.reads[name]}
    stages = [wanted]
    for index, site in reversed(list(enumerate(parts.transforms))):
        inputs = wiring.into(index)
        made = wanted - inputs.keys()
        wanted = wanted & inputs.keys()
        if made:
            wanted |= {*cast(type[Transform], site.part).needs(site.config, inputs)}
        stages.insert(0, wanted)
    return stages


def observed_keys(parts: Parts, wiring: Wiring) -> set[str]:
    """Return the keys of the observations that backbones, transforms or the collator require.

    The collator needs an observation if its `specs` refuses the others, or returns fewer keys for them.
    """
    wanted = required_keys(parts, wiring)
    made = wanted - wiring.observations.keys()
    site = parts.collator
    facts = wiring.facts.get(site.key, {})

    def collator_needs(key: str) -> bool:
        others = {other: spec for other, spec in wiring.observations.items() if other != key}
        try:
            left = site.part.specs(site.config, others, facts)
        except PolicysmithError:
            return True
        return not made <= left.keys()

    known = (Kind.ACTION, Kind.EMBODIMENT)
    seen = [key for key, spec in wiring.observations.items() if spec.kind not in known]
    return {key for key in seen if key in wanted or collator_needs(key)}


def _problem(site: Site, error: PolicysmithError, stages: Sequence[Stage], code: ErrorCode) -> Problem:
    """Return a part's complaint about its inputs, with the place that gave the input at fault its size."""
    found = as_spec_error(error)
    key = found.source
    if key is None or key not in stages[-1].specs:
        return Problem(site.path, found, code=code)
    spec = stages[-1].specs[key]
    traits = [getattr(stage.specs.get(key), found.trait, None) for stage in stages]
    changed = [i for i in range(1, len(stages)) if traits[i] != traits[i - 1]]
    path = stages[changed[-1] if changed else 0].path
    if found.trait == "range":
        return Problem(site.path, found, [(path, f"`{key}` is {spec.range or 'raw'} here")])
    return Problem(site.path, found, [(path, f"`{key}` is {spec}{because(spec)}")], code)


__all__ = [
    "Stage",
    "Wiring",
    "keys_before_transforms",
    "look_up_facts",
    "observed_keys",
    "remarks",
    "required_keys",
    "wire",
    "wire_samples",
    "with_statistics",
]
