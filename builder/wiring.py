"""Joins the parts of a recipe: which output feeds which input, and every size along the way.

Pure: reads configs and specs, allocates nothing. The same function wires a recipe before it is built and a saved
policy when it is loaded. Problems are collected, each with the recipe path of the part it concerns.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..components.base import ActionHead, Backbone, Facts, Part
from ..components.registry import BACKBONES, COLLATORS, HEADS, TRANSFORMS
from ..schemas.diagnostics import ErrorCode
from ..schemas.document import KeyPath, dotted
from ..schemas.errors import PolicysmithError, RegistryError, SpecError, WeightsError
from ..schemas.part import BackboneConfig, HeadConfig, PartConfig
from ..schemas.specs import Spec, Specs

LOCATIONS = ("pretrained", "tokenizer")
"""Options of any part that name a model on the hub, a file or a directory; relative ones start at the recipe."""


@dataclass(frozen=True)
class Site:
    """A part at its place in the recipe."""

    path: KeyPath
    part: type[Part]
    config: PartConfig

    @property
    def key(self) -> str:
        """The path, dotted: `policy.backbones.vision`."""
        return ".".join(str(step) for step in self.path)

    def opened(self, directory: Path | None) -> PartConfig:
        """The config to open files with: what lies in the recipe's directory is spelled out from there."""
        if directory is None:
            return self.config
        found = {}
        for name in LOCATIONS:
            value = getattr(self.config, name, None)
            if isinstance(value, str) and (place := directory / Path(value).expanduser()).exists():
                found[name] = str(place.resolve())
        return self.config.model_copy(update=found)

    @property
    def location(self) -> KeyPath:
        """Path of the option that names its files, or its own where it has none."""
        named = [name for name in LOCATIONS if getattr(self.config, name, None) is not None]
        return (*self.path, *named[:1])


@dataclass(frozen=True)
class Parts:
    """The parts a recipe names. Backbones are in the order of their names, because `config.json` sorts its keys."""

    collator: Site
    transforms: Sequence[Site]
    backbones: Mapping[str, Site]
    head: Site

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbones", dict(sorted(self.backbones.items())))

    @classmethod
    def from_resolved(cls, recipe: Mapping[str, Any]) -> Parts:
        """The parts of a resolved recipe, as a checkpoint holds it. Raises RegistryError for one nothing provides."""

        def site(registry: Any, path: KeyPath, raw: Mapping[str, Any]) -> Site:
            try:
                part = registry.get(raw["type"])
            except RegistryError as error:
                files = ", ".join(recipe.get("imports") or ())
                cure = f"import `{files}` first, as its recipe does" if files else "install what provides it"
                raise RegistryError(f"`{dotted(path)}` cannot be made: {error}; {cure}") from error
            return Site(path, part, part.Config.model_validate(raw))

        policy = recipe["policy"]
        return cls(
            site(COLLATORS, ("collator",), recipe["collator"]),
            [site(TRANSFORMS, ("transforms", i), raw) for i, raw in enumerate(recipe["transforms"])],
            {n: site(BACKBONES, ("policy", "backbones", n), raw) for n, raw in policy["backbones"].items()},
            site(HEADS, ("policy", "head"), policy["head"]),
        )

    def __iter__(self) -> Iterator[Site]:
        yield self.collator
        yield from self.transforms
        yield from self.backbones.values()
        yield self.head


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit; `also` lists other places of the recipe that take part in it."""

    path: KeyPath
    error: SpecError
    also: Sequence[tuple[KeyPath, str]] = ()
    code: ErrorCode = "E020 bad-wiring"


class WiringError(PolicysmithError, ValueError):
    """The parts do not fit together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{'.'.join(map(str, p.path))}: {p.error}" for p in problems))


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
    outputs: Mapping[str, Sequence[str]]
    """By backbone, the outputs the head asks of it."""
    features: Specs
    """What the head reads, by `<backbone>.<output>`."""
    action: Spec
    """What the head gives."""
    facts: Mapping[str, Facts] = field(default_factory=dict)

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
            problems.append(Problem(site.location, _as_spec_error(error), code="E024 bad-weights"))
            continue
        except PolicysmithError as error:
            problems.append(Problem(site.path, _as_spec_error(error)))
            continue
        if facts:
            found[site.key] = facts
    if problems:
        raise WiringError(problems)
    return found


def with_statistics(
    facts: Mapping[str, Facts], transforms: Iterable[Site], statistics: Mapping[str, Any]
) -> dict[str, Facts]:
    """Facts of all parts, with the dataset's statistics among those of each transform."""
    return {**facts, **{s.key: {**facts.get(s.key, {}), "statistics": statistics} for s in transforms}}


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

    features = _head_inputs(parts, published, problems)
    if problems:
        raise WiringError(problems)
    try:
        inputs = {**features, "action": current["action"]}
        action = parts.head.part.specs(parts.head.config, inputs, facts.get(parts.head.key, {}))["action"]
    except PolicysmithError as error:
        also = [
            (parts.backbones[key.split(".")[0]].path, f"{key} is {spec}{_because(spec)}")
            for key, spec in features.items()
        ]
        problem = Problem(parts.head.path, _as_spec_error(error), also, "E021 dim-mismatch")
        raise WiringError([problem]) from error
    asked = {
        name: [key.split(".")[1] for key in features if key.split(".")[0] == name] for name in parts.backbones
    }
    collated, *after = [stage.specs for stage in stages[1:]]
    return Wiring(observations, collated, after, reads, asked, features, action, facts)


@dataclass(frozen=True)
class Stage:
    """What flows after one step of the samples' way, and where the recipe asks for that step."""

    path: KeyPath
    specs: Specs


def wire_samples(sites: Sequence[Site], observations: Specs, facts: Mapping[str, Facts]) -> list[Stage]:
    """Specs of the data and after each site, a collator or transform. Raises WiringError.

    Observations are taken in the order of their names, as a saved config has them.
    """
    stages = [Stage(("data", "path"), dict(sorted(observations.items())))]
    for site in sites:
        inputs = stages[-1].specs
        try:
            stages.append(Stage(site.path, site.part.specs(site.config, inputs, facts.get(site.key, {}))))
        except PolicysmithError as error:
            raise WiringError([_problem(site, error, stages, "E021 dim-mismatch")]) from error
    return stages


def _head_inputs(parts: Parts, published: Mapping[str, Specs], problems: list[Problem]) -> dict[str, Spec]:
    """What the head reads. `published` lacks the backbones that do not fit themselves; nothing is said of these."""
    head = cast(type[ActionHead], parts.head.part)
    config = cast(HeadConfig, parts.head.config)
    features: dict[str, Spec] = {}
    read = set()
    for position, entry in enumerate(config.reads if config.reads is not None else parts.backbones):
        where = f"reads.{position}" if config.reads is not None else None
        name, _, output = entry.partition(".")
        if name not in parts.backbones:
            near = difflib.get_close_matches(name, parts.backbones, n=1)
            help = f"did you mean `{near[0]}`?" if near else f"backbones are: {', '.join(parts.backbones)}"
            message = f"`{config.type}` reads `{entry}`, but no backbone is called `{name}`"
            error = SpecError(message, field=where, label="no such backbone", help=help)
            problems.append(Problem(parts.head.path, error, code="E022 missing-input"))
            continue
        read.add(name)
        if name not in published:
            continue
        offered = published[name]
        wanted = output or next((o for o in head.accepts if o in offered), "")
        key = f"{name}.{wanted}"
        if wanted not in offered or wanted not in head.accepts:
            message = f"head `{config.type}` reads {' or '.join(head.accepts)}, "
            message += f"but backbone `{name}` publishes {' and '.join(offered)}"
            if output in offered:
                message = f"head `{config.type}` cannot read `{output}`; it reads {' or '.join(head.accepts)}"
            error = SpecError(message, field=where, label=f"`{entry}` does not fit")
            also = [(parts.backbones[name].path, f"publishes {' and '.join(offered)}")]
            problems.append(Problem(parts.head.path, error, also, "E022 missing-input"))
        elif key in features:
            error = SpecError(f"`{config.type}` reads `{key}` twice", field=where, label="again")
            problems.append(Problem(parts.head.path, error))
        else:
            features[key] = offered[wanted]
    for name, site in parts.backbones.items():
        if name not in read:
            error = SpecError(
                f"nothing reads backbone `{name}`",
                label="computed for nothing",
                help=f"add `{name}` to `policy.head.reads`, or remove the backbone",
            )
            problems.append(Problem(site.path, error))
    return features


def _problem(site: Site, error: PolicysmithError, stages: Sequence[Stage], code: ErrorCode) -> Problem:
    """What a part said of its inputs, with the place where the input at fault got its size."""
    found = _as_spec_error(error)
    key = found.source
    if key is None or key not in stages[-1].specs:
        return Problem(site.path, found, code=code)
    spec = stages[-1].specs[key]
    traits = [getattr(stage.specs.get(key), found.trait, None) for stage in stages]
    changed = [i for i in range(1, len(stages)) if traits[i] != traits[i - 1]]
    path = stages[changed[-1] if changed else 0].path
    if found.trait == "range":
        return Problem(site.path, found, [(path, f"`{key}` is {spec.range} here")])
    return Problem(site.path, found, [(path, f"`{key}` is {spec}{_because(spec)}")], code)


def _because(spec: Spec) -> str:
    return f" ({spec.why})" if spec.why else ""


def _as_spec_error(error: PolicysmithError) -> SpecError:
    return error if isinstance(error, SpecError) else SpecError(str(error))


__all__ = [
    "LOCATIONS", "Parts", "Problem", "Site", "Stage", "Wiring", "WiringError", "look_up", "wire", "wire_samples",
    "with_statistics",
]  # fmt: skip
