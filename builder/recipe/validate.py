"""The pydantic stage: findings of the models, located in the document, without what the JSON Schema said already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...components.registry import REGISTRIES
from ...schemas.check import check_against
from ...schemas.diagnostics import Diagnostic, ErrorCode, Span
from ...schemas.document import Document
from ...schemas.errors import RegistryError, SpecError
from ...schemas.json_schema import SchemaTree, shipped_schema
from ...schemas.nodes import Key, KeyPath
from ...schemas.part import PartConfig
from ...schemas.recipe import Recipe
from ...schemas.wording import did_you_mean, where
from .json_schema import model_schema

Pair = tuple[type[Any], PartConfig]
M = TypeVar("M", bound=BaseModel)
_DEFAULT_COLLATOR = {"type": "default"}
_ABOUT_KEYS = ("E003 unknown-key", "E004 missing-key")
_BEYOND_SCHEMA = frozenset({"value_error", "assertion_error"})


def part_sites(value: Mapping[str, Any]) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
    """Kind, path and raw options of every part of a raw recipe; skips what is no mapping."""
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
    document: Document, *, heard: Sequence[Diagnostic]
) -> tuple[Recipe | None, list[Diagnostic]]:
    """The sections, parts still raw; findings that are not among those `heard`."""
    recipe, found = validate(document, (), document.value, Recipe, heard=heard)
    return recipe, found


def validate_part(
    document: Document, kind: str, path: KeyPath, raw: dict[str, Any], *, heard: Sequence[Diagnostic]
) -> tuple[Pair | None, list[Diagnostic]]:
    """One part's class and config, or its findings."""
    name = raw.get("type")
    if not isinstance(name, str):
        return None, []
    span = document.span((*path, "type"))
    try:
        part = REGISTRIES[kind].get(name)
    except RegistryError as error:
        known = any(other.span == span for other in heard)
        own = f"register it with `@{kind.upper()}.register` in a file under `imports:`"
        help = own if document.value.get("imports") else ""
        return None, [] if known else [Diagnostic("E006 unknown-type", str(error), span, help=help)]
    except (ImportError, SyntaxError) as error:
        message = f"the part `{kind}.{name}` cannot be imported: {error}"
        return None, [Diagnostic("E012 import-failed", message, span)]
    found: list[Diagnostic] = []
    if name not in SchemaTree(shipped_schema()).types(kind):
        found = check_against(document, path, model_schema(part.Config))
    config, more = validate(document, path, raw, part.Config, heard=[*heard, *found])
    return (None if config is None else (part, config)), found + more


def contradictions(document: Document, recipe: Recipe) -> list[Diagnostic]:
    """Findings for values that are right alone and wrong together: precision, one dataset or several, which robot is judged."""
    data, judged, training = recipe.data, recipe.evaluation, recipe.training
    found: list[Diagnostic] = []

    def report(
        path: KeyPath, code: ErrorCode, message: str, label: str, help: str, related: KeyPath | None = None
    ) -> None:
        also = [] if related is None else [(related, "the other one")]
        error = SpecError(message, label=label, help=help)
        found.append(located(document, path, error, code=code, related=also))

    if training.float8 != "off":
        for key, value, why in (
            ("precision", "fp32", "rounds what is computed in bf16"),
            ("compile", "off", "is slower than bf16 where layers are not compiled"),
        ):
            if getattr(training, key) == value:
                help = f"leave out `training.{key}`, or set `training.float8: off`"
                message = f"`training.float8` {why}, and `training.{key}` is {value}"
                place = ("training", "float8")
                report(place, "E007 invalid-value", message, "one too many", help, ("training", key))
    if data.sources is None:
        if data.path is None:
            help = "name a dataset, or leave it out and name those of several robots by `sources`"
            message = "`data.path` must be a string, found nothing (null)"
            report(("data", "path"), "E005 wrong-type", message, "expected a string", help)
        if judged is not None and judged.embodiment is not None:
            help = "remove it, or name the robots under `data.sources`"
            message = "`evaluation.embodiment` chooses among several robots, but the data has one"
            report(("evaluation", "embodiment"), "E007 invalid-value", message, "nothing to choose", help)
        return found
    names = ", ".join(f"`{name}`" for name in sorted(data.sources))
    if data.path is not None:
        help = "remove one: `path` names one dataset, `sources` those of several robots"
        message = "`data.path` and `data.sources` exclude each other"
        report(("data", "sources"), "E007 invalid-value", message, "one too many", help, ("data", "path"))
    for key in ("cameras", "columns", "episodes"):
        if getattr(data, key) is not None:
            message = f"`data.{key}` is said of each source by itself"
            help = f"write `{key}` below {names}"
            report(("data", key), "E003 unknown-key", message, "of which source?", help)
    if judged is not None and judged.embodiment not in data.sources:
        if judged.embodiment is None:
            help = f"add `embodiment`, one of {names}"
            message = "`evaluation` needs the key `embodiment`: the policy is for several robots"
            report(("evaluation",), "E004 missing-key", message, "`embodiment` is missing", help)
        else:
            label = did_you_mean(judged.embodiment, data.sources, "no such robot")
            message = f"no robot is called `{judged.embodiment}`"
            help = f"`data.sources` names {names}"
            report(("evaluation", "embodiment"), "E025 unknown-embodiment", message, label, help)
    return found


def validate(
    document: Document, path: KeyPath, raw: object, model: type[M], *, heard: Sequence[Diagnostic] = ()
) -> tuple[M | None, list[Diagnostic]]:
    """The model of the value at `path`, or findings that the schema stage has not reported already (`heard`)."""
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    found = []
    for detail in details:
        place = (*path, *_without_tags(raw, detail["loc"]))
        span = document.span(place)
        if heard and (detail["type"] not in _BEYOND_SCHEMA or any(other.span == span for other in heard)):
            continue
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        found.append(Diagnostic("E007 invalid-value", f"{where(place)}: {message}", span))
    return None, found


def _without_tags(value: object, location: Sequence[Key]) -> KeyPath:
    """Pydantic's location of a finding without the names of union members, which no recipe holds."""
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
    code: ErrorCode = "E020 bad-wiring",
    related: Sequence[tuple[KeyPath, str]] = (),
    notes: Sequence[str] = (),
) -> Diagnostic:
    """A finding about the value at `path`, or at the option below it that a SpecError names."""
    places = tuple((_short(document, place), label) for place, label in related)
    spec = SpecError(error) if isinstance(error, str) else error
    place = (*path, *_below(document, path, spec.field or ""))
    span = document.span(place, "key") if code in _ABOUT_KEYS else _short(document, place)
    about_part = isinstance(error, SpecError) and error.message[:1].islower()
    message = f"{where(path)}: {spec.message}" if about_part else spec.message
    return Diagnostic(code, message, span, spec.label, places, tuple(notes), spec.help)


def _short(document: Document, path: KeyPath) -> Span:
    """Place of a value, or of its key where the value takes several lines."""
    span = document.span(path)
    return span if span.line == span.end_line else document.span(path, "key")


def _below(document: Document, path: KeyPath, field: str) -> KeyPath:
    """The steps of a dotted option below a part, as far as the recipe has them; its keys may hold dots themselves."""
    value: Any = document.value
    for step in path:
        value = value[step] if _has(value, step) else None
    steps: list[Key] = []
    names = field.split(".") if field else []
    while names:
        joined = (".".join(names[:length]) for length in range(len(names), 0, -1))
        found = next((key for key in joined if _has(value, _step(value, key))), None)
        if found is None:
            break
        steps.append(_step(value, found))
        value, names = value[steps[-1]], names[found.count(".") + 1 :]
    return tuple(steps)


def _step(value: object, key: str) -> Key:
    return int(key) if isinstance(value, list) and key.isdigit() else key


def _has(value: object, step: Key) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and 0 <= step < len(value)
    return isinstance(value, dict) and step in value
