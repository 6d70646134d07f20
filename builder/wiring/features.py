"""Features by name: what necks and head read of the backbones, and of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from ...components.base import ActionHead, Facts, Neck
from ...components.features import find_feature
from ...schemas.errors import PolicysmithError, SpecError
from ...schemas.part import HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ...schemas.wording import did_you_mean, near
from ...schemas.yaml.nodes import KeyPath
from .parts import Parts, Problem, Site, as_spec_error, because


def check_names(parts: Parts, problems: list[Problem]) -> None:
    """Add a problem for every neck that has the name of a backbone."""
    for name, site in parts.necks.items():
        if name in parts.backbones:
            label, help = "the name of a backbone", "rename one of the two"
            error = SpecError(f"a backbone has the name `{name}` too", label=label, help=help)
            problems.append(Problem(site.path, error))


def wire_necks(
    parts: Parts,
    published: dict[str, Specs],
    robots: Specs,
    facts: Mapping[str, Facts],
    problems: list[Problem],
) -> dict[str, Specs]:
    """Return the inputs of each neck, in computable order, and add their outputs to `published`."""
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
            also = origins(parts, features)
            problems.append(Problem(site.path, as_spec_error(error), also, "E021 dim-mismatch"))
    return necks


def _entries(site: Site) -> list[tuple[str, str, tuple[Kind, ...]]]:
    """Return the features that a neck's options name: option, name and accepted kinds."""
    neck = cast(type[Neck], site.part)
    return [
        (f"{role}.{position}", entry, kinds)
        for role, kinds in neck.roles.items()
        for position, entry in enumerate(getattr(site.config, role) or ())
    ]


def head_inputs(parts: Parts, published: Mapping[str, Specs], problems: list[Problem]) -> dict[str, Spec]:
    """Return the inputs of the head. Sources missing from `published` already have a problem of their own."""
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
                label="its features are unused",
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
    """Return the features that a head or a neck names in `entries`: option, name and accepted kinds."""
    features: dict[str, Spec] = {}
    taken: set[tuple[str, str]] = set()
    kind, noun = reader.config.type, "head" if reader is parts.head else "neck"
    for where, entry, kinds in entries:
        field, (name, _, output) = where or None, entry.partition(".")
        if name not in parts.sources:
            nouns = "backbones are" if not parts.necks else "backbones and necks are"
            help = did_you_mean(name, parts.sources, f"{nouns}: {', '.join(parts.sources)}")
            thing = "backbone" if not parts.necks else "backbone or neck"
            message = f"`{kind}` reads `{entry}`, but no {thing} is called `{name}`"
            error = SpecError(message, field=field, label=f"no such {thing}", help=help)
            problems.append(Problem(reader.path, error, code="E022 missing-input"))
            continue
        if name not in published:
            continue
        offered = published[name]
        source = "backbone" if name in parts.backbones else "neck"
        key = find_feature(entry, {f"{name}.{o}": spec for o, spec in offered.items()}, kinds)
        if key is None or offered[key.split(".")[1]].kind not in kinds:
            message = f"{noun} `{kind}` reads {' or '.join(kinds)}, "
            message += f"but {source} `{name}` publishes {' and '.join(offered)}"
            if output in offered:
                message = f"{noun} `{kind}` cannot read `{output}`; it reads {' or '.join(kinds)}"
            help = _cure(entry, kinds, offered)
            if output and output not in offered:
                message = f"{noun} `{kind}` reads `{entry}`, but {source} `{name}` publishes no `{output}`"
                meant = near(output, offered)
                help = f"did you mean `{name}.{meant}`?" if meant else help
            error = SpecError(message, field=field, label=f"`{entry}` does not fit", help=help)
            also = [(parts.sources[name].path, f"publishes {' and '.join(offered)}")]
            problems.append(Problem(reader.path, error, also, "E022 missing-input"))
        elif (role := (where.partition(".")[0], key)) in taken:
            error = SpecError(f"`{kind}` reads `{key}` twice", field=field, label="second time")
            problems.append(Problem(reader.path, error))
        else:
            taken.add(role)
            features[key] = offered[key.split(".")[1]]
    return features


def _cure(entry: str, kinds: Sequence[Kind], offered: Specs) -> str:
    """Return the cure for a source that publishes nothing its reader can read."""
    name, _, output = entry.partition(".")
    fitting = [output for output, spec in offered.items() if spec.kind in kinds]
    if Kind.KEY_VALUES in kinds and (output == Kind.KEY_VALUES or not fitting):
        return (
            "take a backbone of type `vlm` or put a neck `prefix` between, which publish key_values, "
            "or a network that reads tokens, such as `dit`"
        )
    if fitting:
        return f"read `{name}.{fitting[0]}`"
    if Kind.POOLED in kinds and any(spec.kind is Kind.TOKENS for spec in offered.values()):
        return f"put a neck between, `necks: {{pool: {{type: attention_pool, reads: [{name}]}}}}`, and read `pool`"
    if Kind.TOKENS in kinds:
        return "take a backbone that publishes tokens, or a head that reads pooled features, such as `mlp`"
    return f"take a backbone that publishes {' or '.join(kinds)}"


def origins(parts: Parts, features: Specs) -> list[tuple[KeyPath, str]]:
    """Return the place of the part behind each feature, with the feature's spec."""
    return [
        (parts.sources[key.split(".")[0]].path, f"{key} is {spec}{because(spec)}")
        for key, spec in features.items()
    ]


__all__ = ["check_names", "head_inputs", "origins", "wire_necks"]
