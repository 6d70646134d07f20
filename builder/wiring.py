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

from ..components.base import ActionHead, Backbone, Facts, Neck, Part, Transform
from ..components.features import named
from ..components.registry import BACKBONES, COLLATORS, HEADS, NECKS, TRANSFORMS
from ..schemas.diagnostics import ErrorCode
from ..schemas.document import KeyPath, dotted
from ..schemas.errors import PolicysmithError, RegistryError, SpecError, WeightsError
from ..schemas.part import BackboneConfig, HeadConfig, PartConfig
from ..schemas.specs import Kind, Spec, Specs

LOCATIONS = ("pretrained", "architecture", "tokenizer")
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
    """The parts a recipe names. Backbones and necks are in the order of their names: `config.json` sorts its keys."""

    collator: Site
    transforms: Sequence[Site]
    backbones: Mapping[str, Site]
    necks: Mapping[str, Site]
    head: Site

    def __post_init__(self) -> None:
        for kind in ("backbones", "necks"):
            object.__setattr__(self, kind, dict(sorted(getattr(self, kind).items())))

    @property
    def sources(self) -> dict[str, Site]:
        """Backbones and necks, which publish features, by name."""
        return {**self.backbones, **self.necks}

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
            {n: site(NECKS, ("policy", "necks", n), raw) for n, raw in policy.get("necks", {}).items()},
            site(HEADS, ("policy", "head"), policy["head"]),
        )

    def __iter__(self) -> Iterator[Site]:
        yield self.collator
        yield from self.transforms
        yield from self.backbones.values()
        yield from self.necks.values()
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

    _check_names(parts, problems)
    robots = {key: spec for key, spec in current.items() if spec.kind is Kind.EMBODIMENT}
    necks = _wire_necks(parts, published, robots, facts, problems)
    features = _head_inputs(parts, published, problems)
    if problems:
        raise WiringError(problems)
    given = {**robots, **{key: spec for key, spec in current.items() if spec.kind is Kind.ACTION}}
    try:
        head_facts = facts.get(parts.head.key, {})
        action = parts.head.part.specs(parts.head.config, {**features, **given}, head_facts)["action"]
    except PolicysmithError as error:
        also = _origins(parts, features)
        problem = Problem(parts.head.path, _as_spec_error(error), also, "E021 dim-mismatch")
        raise WiringError([problem]) from error
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
    stages = [Stage(("data", "path"), dict(sorted(observations.items())))]
    for site in sites:
        inputs = stages[-1].specs
        try:
            stages.append(Stage(site.path, site.part.specs(site.config, inputs, facts.get(site.key, {}))))
        except PolicysmithError as error:
            raise WiringError([_problem(site, error, stages, "E021 dim-mismatch")]) from error
    return stages


def demanded(parts: Parts, wiring: Wiring) -> set[str]:
    """Keys, after the collator, that backbones read or transforms cannot do without."""
    wanted = {key for inputs in wiring.reads.values() for key in inputs}
    for index, site in reversed(list(enumerate(parts.transforms))):
        inputs = wiring.into(index)
        wanted = (wanted & inputs.keys()) | {*cast(type[Transform], site.part).needs(site.config, inputs)}
    return wanted


def _check_names(parts: Parts, problems: list[Problem]) -> None:
    for name, site in parts.necks.items():
        if name in parts.backbones:
            label, help = "the name of a backbone", "rename one of the two"
            error = SpecError(f"a backbone is called `{name}` too", label=label, help=help)
            problems.append(Problem(site.path, error))


def _wire_necks(
    parts: Parts,
    published: dict[str, Specs],
    robots: Specs,
    facts: Mapping[str, Facts],
    problems: list[Problem],
) -> dict[str, Specs]:
    """What each neck reads, each after those it reads from; adds what they publish to `published`."""
    necks: dict[str, Specs] = {}
    waiting = {
        name: {entry.partition(".")[0] for _, entry, _ in _entries(site)}
        for name, site in parts.necks.items()
    }
    while waiting:
        name = next((name for name, sources in waiting.items() if not sources & waiting.keys()), None)
        if name is None:
            for name in waiting:
                error = SpecError(
                    f"neck `{name}` reads from itself, through {' and '.join(waiting)}", field="reads"
                )
                problems.append(Problem(parts.necks[name].path, error))
            break
        sources, site = waiting.pop(name), parts.necks[name]
        before = len(problems)
        features = _resolve(parts, site, _entries(site), published, problems)
        if len(problems) > before or not sources <= published.keys():
            continue
        try:
            inputs = {**features, **robots}
            published[name] = site.part.specs(site.config, inputs, facts.get(site.key, {}))
            necks[name] = features
        except PolicysmithError as error:
            also = _origins(parts, features)
            problems.append(Problem(site.path, _as_spec_error(error), also, "E021 dim-mismatch"))
    return necks


def _entries(site: Site) -> list[tuple[str, str, tuple[Kind, ...]]]:
    """The features that a neck's options name: the option, the name, and the kinds it accepts there."""
    neck = cast(type[Neck], site.part)
    return [
        (f"{role}.{position}", entry, kinds)
        for role, kinds in neck.roles.items()
        for position, entry in enumerate(getattr(site.config, role) or ())
    ]


def _head_inputs(parts: Parts, published: Mapping[str, Specs], problems: list[Problem]) -> dict[str, Spec]:
    """What the head reads. `published` lacks the sources that do not fit themselves; nothing is said of these."""
    head = cast(type[ActionHead], parts.head.part)
    config = cast(HeadConfig, parts.head.config)
    kinds = head.kinds(config)
    passed_on = {entry.partition(".")[0] for site in parts.necks.values() for _, entry, _ in _entries(site)}
    if config.reads is None:
        wanted = [("", name, kinds) for name in sorted(parts.sources) if name not in passed_on]
    else:
        wanted = [(f"reads.{position}", entry, kinds) for position, entry in enumerate(config.reads)]
    features = _resolve(parts, parts.head, wanted, published, problems)
    read = passed_on | {entry.partition(".")[0] for _, entry, _ in wanted}
    for name, site in parts.sources.items():
        if name not in read:
            noun = "backbone" if name in parts.backbones else "neck"
            error = SpecError(
                f"nothing reads {noun} `{name}`",
                label="computed for nothing",
                help=f"add `{name}` to `policy.head.reads`, or remove the {noun}",
            )
            problems.append(Problem(site.path, error))
    return features


def _resolve(
    parts: Parts,
    reader: Site,
    entries: Sequence[tuple[str, str, tuple[Kind, ...]]],
    published: Mapping[str, Specs],
    problems: list[Problem],
) -> dict[str, Spec]:
    """The features that a head or a neck names, each entry with its option and the kinds accepted there."""
    features: dict[str, Spec] = {}
    taken: set[tuple[str, str]] = set()
    kind, noun = reader.config.type, "head" if reader is parts.head else "neck"
    for where, entry, kinds in entries:
        field, (name, _, output) = where or None, entry.partition(".")
        if name not in parts.sources:
            near = difflib.get_close_matches(name, parts.sources, n=1)
            nouns = "backbones are" if not parts.necks else "backbones and necks are"
            help = f"did you mean `{near[0]}`?" if near else f"{nouns}: {', '.join(parts.sources)}"
            thing = "backbone" if not parts.necks else "backbone or neck"
            message = f"`{kind}` reads `{entry}`, but no {thing} is called `{name}`"
            error = SpecError(message, field=field, label=f"no such {thing}", help=help)
            problems.append(Problem(reader.path, error, code="E022 missing-input"))
            continue
        if name not in published:
            continue
        offered = published[name]
        source = "backbone" if name in parts.backbones else "neck"
        key = named(entry, {f"{name}.{o}": spec for o, spec in offered.items()}, kinds)
        if key is None or offered[key.split(".")[1]].kind not in kinds:
            message = f"{noun} `{kind}` reads {' or '.join(kinds)}, "
            message += f"but {source} `{name}` publishes {' and '.join(offered)}"
            if output in offered:
                message = f"{noun} `{kind}` cannot read `{output}`; it reads {' or '.join(kinds)}"
            error = SpecError(
                message, field=field, label=f"`{entry}` does not fit", help=_cure(name, kinds, offered)
            )
            also = [(parts.sources[name].path, f"publishes {' and '.join(offered)}")]
            problems.append(Problem(reader.path, error, also, "E022 missing-input"))
        elif (role := (where.partition(".")[0], key)) in taken:
            error = SpecError(f"`{kind}` reads `{key}` twice", field=field, label="again")
            problems.append(Problem(reader.path, error))
        else:
            taken.add(role)
            features[key] = offered[key.split(".")[1]]
    return features


def _cure(name: str, kinds: Sequence[Kind], offered: Specs) -> str:
    """What to do where a source publishes nothing that its reader can read."""
    fitting = [output for output, spec in offered.items() if spec.kind in kinds]
    if fitting:
        return f"read `{name}.{fitting[0]}`"
    if Kind.KEY_VALUES in kinds:
        return "take a backbone of type `vlm`, which publishes key_values, or a network that reads tokens, such as `dit`"
    if Kind.POOLED in kinds and any(spec.kind is Kind.TOKENS for spec in offered.values()):
        return f"put a neck between, `necks: {{pool: {{type: attention_pool, reads: [{name}]}}}}`, and read `pool`"
    if Kind.TOKENS in kinds:
        return "take a backbone that publishes tokens, or a head that reads pooled features, such as `mlp`"
    return f"take a backbone that publishes {' or '.join(kinds)}"


def _origins(parts: Parts, features: Specs) -> list[tuple[KeyPath, str]]:
    """The parts that publish some features, with what they publish."""
    return [
        (parts.sources[key.split(".")[0]].path, f"{key} is {spec}{_because(spec)}")
        for key, spec in features.items()
    ]


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
        return Problem(site.path, found, [(path, f"`{key}` is {spec.range or 'raw'} here")])
    return Problem(site.path, found, [(path, f"`{key}` is {spec}{_because(spec)}")], code)


def _because(spec: Spec) -> str:
    return f" ({spec.why})" if spec.why else ""


def _as_spec_error(error: PolicysmithError) -> SpecError:
    return error if isinstance(error, SpecError) else SpecError(str(error))


__all__ = [
    "LOCATIONS", "Parts", "Problem", "Site", "Stage", "Wiring", "WiringError", "demanded", "look_up", "wire",
    "wire_samples", "with_statistics",
]  # fmt: skip
