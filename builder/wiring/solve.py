"""Joins the parts of a recipe: which output feeds which input, and every size along the way.

Pure: reads configs and specs, allocates nothing. The same function wires a recipe before it is built and a saved
policy when it is loaded. Problems are collected, each with the recipe path of the part it concerns.
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
from ...schemas.nodes import KeyPath, dotted
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from .features import check_names, head_inputs, origins, wire_necks
from .parts import Parts, Problem, Site, WiringError, as_spec_error, because


@dataclass(frozen=True)
class Wiring:
    """Every edge of a policy."""

    observations: Specs
    """What the dataset gives, `action` included."""
    collated: Specs
    """The same after the collator."""
    transformed: Sequence[Specs]
    """The same after each transform."""
    reads: Mapping[str, Specs]
    """By backbone, what it reads."""
    necks: Mapping[str, Specs]
    """By neck, the features it reads; in an order in which all are there when they are read."""
    outputs: Mapping[str, Sequence[str]]
    """By backbone and neck, the outputs that are asked of it."""
    features: Specs
    """What the head reads, by `<backbone>.<output>`."""
    given: Specs
    """What the head knows besides: the size of the actions, and of the embodiments where there are several."""
    action: Spec
    """What the head gives."""
    facts: Mapping[str, Facts] = field(default_factory=dict)

    def into_neck(self, name: str) -> Specs:
        """What a neck reads, and the size of the embodiments where there are several."""
        robots = {key: spec for key, spec in self.given.items() if spec.kind is Kind.EMBODIMENT}
        return {**self.necks[name], **robots}

    def into(self, index: int) -> Specs:
        """What transform `index` reads; one past the last, what backbones and head read."""
        return self.transformed[index - 1] if index else self.collated


def look_up(sites: Iterable[Site], directory: Path | None = None) -> dict[str, dict[str, Any]]:
    """What parts look up outside the recipe, by part. Raises WiringError with all that cannot be read."""
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for site in sites:
        try:
            facts = site.part.facts(site.opened(directory))
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
    """Facts of all parts, with the dataset's statistics among those of the collator and of each transform."""
    return {**facts, **{s.key: {**facts.get(s.key, {}), "statistics": statistics} for s in readers}}


def wire(parts: Parts, observations: Specs, facts: Mapping[str, Facts]) -> Wiring:
    """Solve all specs. Raises WiringError with every problem found."""
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
    """What flows after one step of the samples' way, and where the recipe asks for that step."""

    path: KeyPath
    specs: Specs


def wire_samples(sites: Sequence[Site], observations: Specs, facts: Mapping[str, Facts]) -> list[Stage]:
    """Specs of the data and after each site, a collator or transform. Raises WiringError.

    Observations are taken in the order of their names, as a saved config has them.
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


def remarks(transforms: Sequence[Site], inputs: Sequence[Specs], facts: Mapping[str, Facts]) -> list[str]:
    """Return what transforms that read `inputs` have to say of the data, with the place of each."""
    return [
        f"`{dotted(site.path)}`: {remark}"
        for site, specs in zip(transforms, inputs, strict=True)
        for remark in cast(type[Transform], site.part).remarks(site.config, specs, facts.get(site.key, {}))
    ]


def demanded(parts: Parts, wiring: Wiring, without: Collection[str] = ()) -> set[str]:
    """Keys, after the collator, that backbones other than `without` read or transforms cannot do without."""
    wanted = {key for name, inputs in wiring.reads.items() if name not in without for key in inputs}
    for index, site in reversed(list(enumerate(parts.transforms))):
        inputs = wiring.into(index)
        wanted = (wanted & inputs.keys()) | {*cast(type[Transform], site.part).needs(site.config, inputs)}
    return wanted


def traced(parts: Parts, wiring: Wiring, backbones: Iterable[str]) -> list[set[str]]:
    """Keys that these backbones depend on: before each transform, and last what they read."""
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


def _problem(site: Site, error: PolicysmithError, stages: Sequence[Stage], code: ErrorCode) -> Problem:
    """What a part said of its inputs, with the place where the input at fault got its size."""
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
    "demanded",
    "look_up",
    "remarks",
    "traced",
    "wire",
    "wire_samples",
    "with_statistics",
]
