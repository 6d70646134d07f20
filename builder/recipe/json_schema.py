"""The JSON Schema of recipes, generated from the pydantic models that validate them.

`policysmith schema --write` writes it to `schemas/recipe.v1.json`, for the command line and for editors. A
choice by `type` becomes an `enum` and one `if`/`then` for each, because editors and validators explain those
well and `oneOf` badly.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from ...components.registry import REGISTRIES
from ...schemas.json_schema import SCHEMA_FILE, nullable
from ...schemas.questions.explanation import type_of
from ...schemas.recipe import Recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Generator that also includes defaults made by a factory."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        if factory is not None and not schema.get("default_factory_takes_data"):
            return factory()  # type: ignore[call-arg]
        return super().get_default_value(schema)


def recipe_schema(*, plugins: bool = False) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of recipes.

    It has the parts of this package, and with `plugins` also those of entry points and imported files.
    """
    root = model_schema(Recipe)
    definitions: dict[str, Any] = {}
    for kind, registry in sorted(REGISTRIES.items()):
        types = {name: registry.get(name) for name in (registry.names() if plugins else registry.shipped)}
        definitions[kind] = _choice(list(types), lambda name, kind=kind: {"$ref": f"#/$defs/{kind}.{name}"})
        for name, part in types.items():
            example = part.example().model_dump(mode="json", exclude_unset=True)
            _, _, details = (inspect.getdoc(part) or "").partition("\n\n")
            definitions[f"{kind}.{name}"] = {
                **model_schema(part.Config),
                "examples": [example],
                **({"x-about": details} if details else {}),
            }
    needed = {"required": root.pop("required")}
    root |= {"if": {"required": ["base"]}, "then": {}, "else": needed}
    sorted_root: dict[str, Any] = _sorted({**root, "$defs": definitions})
    return {
        "$schema": _DIALECT,
        "$id": f"urn:policysmith:recipe:v1{':plugins' if plugins else ''}",
        "title": "policysmith recipe",
    } | sorted_root


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a section or of a part's `Config`, with references to kinds of parts."""
    raw = model.model_json_schema(schema_generator=_Generator)
    return _tidy(raw, raw.pop("$defs", {}))


def schema_text(*, plugins: bool = False) -> str:
    """Return the exact content of `schemas/recipe.v1.json`, or that with `plugins`."""
    return json.dumps(recipe_schema(plugins=plugins), indent=1, ensure_ascii=False) + "\n"


def write_schema(path: Path = SCHEMA_FILE) -> bool:
    """Write the schema. Return whether the file changed."""
    text = schema_text()
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def _tidy(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with inlined references, without titles, and with unions that are easy to explain."""
    schema = dict(schema)
    if (reference := schema.pop("$ref", None)) is not None:
        section = definitions[reference.removeprefix("#/$defs/")]
        about = (
            {"x-about": section["description"]} if {"description"} <= section.keys() & schema.keys() else {}
        )
        schema = {**section, **schema, **about}
    schema.pop("title", None)
    if schema.get("default", ...) is None:
        del schema["default"]  # see schemas/json_schema.py
    if (kind := schema.pop("x-part", None)) is not None:
        kept: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
        return {"$ref": f"#/$defs/{kind}", **kept}
    if "properties" in schema:
        needed = schema.get("required", ())
        schema["properties"] = {
            name: _with_hover(_tidy(child, definitions), needed=name in needed)
            for name, child in schema["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            schema[key] = _tidy(schema[key], definitions)
    if (patterns := schema.pop("patternProperties", None)) is not None:
        ((pattern, child),) = patterns.items()
        schema |= {"additionalProperties": _tidy(child, definitions), "propertyNames": {"pattern": pattern}}
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            members = [_tidy(member, definitions) for member in schema.pop(key)]
            schema.pop("discriminator", None)
            schema = {**_union(members), **schema}
    return schema


def _with_hover(option: dict[str, Any], *, needed: bool) -> dict[str, Any]:
    """Return the schema of an option with the text that editors show: its description, type and default."""
    if "description" not in option:
        return option
    known = "default" in option or nullable(option)
    value = json.dumps(option.get("default"), sort_keys=True)
    default = "required" if needed else f"default `{value}`" if known else ""
    choices = "`, `".join(json.dumps(value) for value in option.get("enum", ()) if value is not None)
    kind = f"`{choices}`" if choices else "" if "const" in option else type_of(option)
    text = "\n\n".join((option["description"], "; ".join(filter(None, (kind, default)))))
    return {**option, "markdownDescription": text}


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the union of schemas without `oneOf`, and without `anyOf` if their types differ."""
    tags = [member.get("properties", {}).get("type", {}).get("const") for member in members]
    if (
        len(members) == 2
        and tags[0] is not None
        and tags[1] is None
        and "type" in members[1].get("properties", {})
    ):
        return {
            "type": "object",
            "if": {"properties": {"type": {"const": tags[0]}}},
            "then": members[0],
            "else": members[1],
        }
    if all(tag is not None for tag in tags):
        by_tag = dict(zip(tags, members, strict=True))
        return _choice(list(by_tag), by_tag.__getitem__)
    types: list[str] = []
    merged: dict[str, Any] = {}
    for member in members:
        own = member.get("type")
        others = {key: value for key, value in member.items() if key != "type"}
        names = [own] if isinstance(own, str) else list(own or ())
        if not names or set(names) & set(types) or others.keys() & merged.keys():
            return {"anyOf": members}
        if names == ["null"] and merged.keys() & {"enum", "const"}:
            values = merged.pop("enum", None) or [merged.pop("const")]
            merged["enum"] = [*values, None]
        elif merged.keys() & {"enum", "const"} or (types and others.keys() & {"enum", "const"}):
            return {"anyOf": members}
        types += names
        merged |= others
    return {"type": types, **merged}


def _choice(names: list[str], schema_of: Any) -> dict[str, Any]:
    """Return the schema of a mapping whose `type` determines its other keys.

    The pattern repeats the constant, of which yaml-language-server compares a prefix when it completes.
    """
    return {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string", "enum": names}},
        "allOf": [
            {
                "if": {
                    "required": ["type"],
                    "properties": {"type": {"const": name, "pattern": f"^{name}$"}},
                },
                "then": schema_of(name),
            }
            for name in names
        ],
    }


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
