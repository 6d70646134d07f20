"""The pydantic stage: findings of the models, located in the document, beyond those of the JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...components.registry import REGISTRIES
from ...schemas.check import check_against
from ...schemas.diagnostics import Code, Diagnostic, Span
from ...schemas.errors import RegistryError, SpecError
from ...schemas.json_schema import SchemaTree, shipped_schema
from ...schemas.part import PartConfig
from ...schemas.recipe import Recipe
from ...schemas.wording import where
from ...schemas.yaml.document import Document
from ...schemas.yaml.nodes import Key, KeyPath
from .json_schema import model_schema

PartOf = tuple[type[Any], PartConfig]
"""Class and validated config of a part."""
M = TypeVar("M", bound=BaseModel)
_DEFAULT_COLLATOR = {"type": "default"}
_ABOUT_KEYS = ("E003 unknown-key", "E004 missing-key")
_BEYOND_SCHEMA = frozenset({"value_error", "assertion_error"})


def part_sites(value: Mapping[str, Any]) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
    """Yield kind, path and raw options of every part of a raw recipe; skip what is not a mapping."""
    policy = value.get("policy")
    if isinstance(policy, dict) and policy.get("type", "composed") == "composed":
        for kind in ("backbones", "necks"):
            parts = policy.get(kind)
            for name, raw in parts.items() if isinstance(parts, dict) else ():
                yield from _site(kind, ("policy", kind, name), raw)
        yield from _site("heads", ("policy", "head"), policy.get("head"))
    transforms = value.get("transforms")
    for position, raw in enumerate(transforms if isinstance(transforms, list) else ()):
        yield from _site("transforms", ("transforms", position), raw)
    yield from _site("collators", ("collator",), value.get("collator", _DEFAULT_COLLATOR))


def _site(kind: str, path: KeyPath, raw: object) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
    if isinstance(raw, dict):
        yield kind, path, raw


def validate_recipe(
    document: Document, *, already_reported: Sequence[Diagnostic]
) -> tuple[Recipe | None, list[Diagnostic]]:
    """Return the sections, parts still raw, and the findings that are not already reported."""
    recipe, found = validate(document, (), document.value, Recipe, already_reported=already_reported)
    return recipe, found


def validate_part(
    document: Document,
    kind: str,
    path: KeyPath,
    raw: dict[str, Any],
    *,
    already_reported: Sequence[Diagnostic],
) -> tuple[PartOf | None, list[Diagnostic]]:
    """Return the class and config of a part, or its findings."""
    name = raw.get("type")
    if not isinstance(name, str):
        return None, []
    span = document.span((*path, "type"))
    try:
        part = REGISTRIES[kind].get(name)
    except RegistryError as error:
        known = any(other.span == span for other in already_reported)
        own = f"register it with `@{kind.upper()}.register` in a file under `imports:`"
        help = own if document.value.get("imports") else ""
        return None, [] if known else [Diagnostic("E006 unknown-type", str(error), span, help=help)]
    except (ImportError, SyntaxError) as error:
        message = f"the part `{kind}.{name}` cannot be imported: {error}"
        return None, [Diagnostic("E012 import-failed", message, span)]
    found: list[Diagnostic] = []
    if name not in SchemaTree(shipped_schema()).types(kind):
        found = check_against(document, path, model_schema(part.Config))
    config, more = validate(document, path, raw, part.Config, already_reported=[*already_reported, *found])
    return (None if config is None else (part, config)), found + more


def validate(
    document: Document,
    path: KeyPath,
    raw: object,
    model: type[M],
    *,
    already_reported: Sequence[Diagnostic] = (),
) -> tuple[M | None, list[Diagnostic]]:
    """Return the model of the value at `path`, or the findings that are not already reported."""
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    found = []
    for detail in details:
        place = (*path, *_without_tags(raw, detail["loc"]))
        span = document.span(place)
        if already_reported and (
            detail["type"] not in _BEYOND_SCHEMA or any(other.span == span for other in already_reported)
        ):
            continue
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        related = document.set_by(place)
        found.append(Diagnostic("E007 invalid-value", f"{where(place)}: {message}", span, related=related))
    return None, found


def _without_tags(value: object, location: Sequence[Key]) -> KeyPath:
    """Return pydantic's location of a finding without the names of union members, which no recipe holds."""
    path: list[Key] = []
    for position, step in enumerate(location):
        last = position == len(location) - 1
        if isinstance(value, dict) and (step in value or (last and isinstance(step, str))):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        path.append(step)
    return tuple(path)


def located(
    document: Document,
    path: KeyPath,
    error: SpecError | str,
    *,
    code: Code = "E020 bad-wiring",
    related: Sequence[tuple[KeyPath, str]] = (),
    notes: Sequence[str] = (),
) -> Diagnostic:
    """Return a finding about the value at `path`, or at the option below it that a SpecError names."""
    places = tuple((_short(document, place), label) for place, label in related)
    spec = SpecError(error) if isinstance(error, str) else error
    below, left_out = _below(document, path, spec.field or "")
    place = (*path, *below)
    span = document.span(place, "key") if code in _ABOUT_KEYS else _short(document, place)
    about_part = isinstance(error, SpecError) and error.message[:1].islower()
    message = f"{where(path)}: {spec.message}" if about_part else spec.message
    places = (*document.set_by(place), *places)
    notes = (*notes, *_default(document, place, left_out))
    return Diagnostic(code, message, span, spec.label, places, notes, spec.help)


def _short(document: Document, path: KeyPath) -> Span:
    """Return the span of a value, or of its key if the value takes several lines."""
    span = document.span(path)
    return span if span.line == span.end_line else document.span(path, "key")


def _default(document: Document, path: KeyPath, left_out: Sequence[str]) -> tuple[str, ...]:
    """Return a note on the default of an option that the mapping at `path` leaves out, if it has one."""
    option = SchemaTree(shipped_schema()).at(document.value, (*path, *left_out)) if left_out else {}
    if option.get("default") is None:
        return ()
    return (f"{where((*path, *left_out))} is not set; its default is {json.dumps(option['default'])}",)


def _below(document: Document, path: KeyPath, field: str) -> tuple[KeyPath, list[str]]:
    """Return the steps of a dotted option below a part that the recipe has, and the names that it leaves out.

    Keys may contain dots.
    """
    value: Any = document.value
    for step in path:
        value = value[step] if _has(value, step) else None
    steps: list[Key] = []
    names = field.split(".") if field else []
    while names:
        candidates = (".".join(names[:length]) for length in range(len(names), 0, -1))
        found = next((key for key in candidates if _has(value, _step(value, key))), None)
        if found is None:
            break
        steps.append(_step(value, found))
        value, names = value[steps[-1]], names[found.count(".") + 1 :]
    return tuple(steps), names


def _step(value: object, key: str) -> Key:
    return int(key) if isinstance(value, list) and key.isdigit() else key


def _has(value: object, step: Key) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and 0 <= step < len(value)
    return isinstance(value, dict) and step in value
