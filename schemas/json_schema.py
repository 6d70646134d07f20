"""The JSON Schema of recipes, resolved along an actual recipe, whose types decide which keys exist.

Conditions in the schema have a single form, `if: {properties: {type: {const: ...}}}`, so no validator is
needed here. It names no default that is null: yaml-language-server offers no keys beside one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .yaml.nodes import Key, KeyPath

Schema = Mapping[str, Any]
SCHEMA_FILE = Path(__file__).with_name("recipe.v1.json")


@cache
def shipped_schema() -> dict[str, Any]:
    """Return the shipped JSON Schema of recipes."""
    return dict(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def nullable(schema: Schema) -> bool:
    """Return whether null is a value of an option, and so the default of one that names none."""
    kinds = schema.get("type", [])
    return "null" in (kinds if isinstance(kinds, list) else [kinds]) or any(
        map(nullable, schema.get("anyOf", []))
    )


class SchemaTree:
    """A schema with its `$defs`."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self._definitions: Schema = root.get("$defs", {})

    def expand(self, schema: Schema, value: object) -> dict[str, Any]:
        """Resolve references, and the conditions that `value` meets.

        For a part, `x-part` of the result is its kind and type, such as `("heads", "mlp")`.
        """
        result = dict(schema)
        branches: list[Schema] = []
        if (reference := result.pop("$ref", None)) is not None:
            name = reference.removeprefix("#/$defs/")
            branches.append(self._definitions[name])
            if "." in name:
                result["x-part"] = tuple(name.split(".", 1))
        for condition in (*result.pop("allOf", ()), result):
            if "if" in condition:
                branch = condition.get("then" if _holds(condition["if"], value) else "else")
                branches += [branch] if branch is not None else []
        for key in ("if", "then", "else"):
            result.pop(key, None)
        for branch in branches:
            inner = self.expand(branch, value)
            properties = {**result.get("properties", {}), **inner.get("properties", {})}
            result = {**inner, **result, **({"properties": properties} if properties else {})}
        return result

    def below(self, schema: Schema, value: object) -> Iterator[tuple[Key, Schema, Any]]:
        """Yield the children of the schema or of the value: step, schema, value (None if absent)."""
        expanded = self.expand(schema, value)
        if isinstance(value, list):
            for position, item in enumerate(value):
                yield position, expanded.get("items", {}), item
            return
        mapping = value if isinstance(value, dict) else {}
        properties = expanded.get("properties", {})
        for key, child in properties.items():
            yield key, child, mapping.get(key)
        other = expanded.get("additionalProperties")
        for key in mapping:
            if key not in properties and isinstance(other, Mapping):
                yield key, other, mapping[key]

    def at(self, value: object, path: KeyPath) -> dict[str, Any]:
        """Return the expanded schema at a path of a recipe; empty if it has none."""
        schema = self.root
        for step in path:
            found = next(((s, v) for key, s, v in self.below(schema, value) if key == step), None)
            if found is None:
                return {}
            schema, value = found
        return self.expand(schema, value)

    def places(self, value: object, name: str) -> list[KeyPath]:
        """Return the paths of keys called `name`, given the parts of this recipe."""
        found: list[KeyPath] = []

        def walk(schema: Schema, inner: object, path: KeyPath) -> None:
            for key, child, item in self.below(schema, inner):
                if key == name:
                    found.append((*path, key))
                walk(child, item, (*path, key))

        walk(self.root, value, ())
        return found

    def types(self, kind: str) -> list[str]:
        """Return the types of one kind of part, such as `heads`."""
        return list(self._definitions.get(kind, {}).get("properties", {}).get("type", {}).get("enum", ()))

    def kinds(self) -> list[str]:
        """Return the kinds of parts."""
        return [name for name in self._definitions if "." not in name]


def _holds(condition: Schema, value: object) -> bool:
    if "properties" not in condition:
        return isinstance(value, dict) and all(key in value for key in condition["required"])
    wanted = condition["properties"]["type"]["const"]
    if not isinstance(value, dict) or "type" not in value:
        return "required" not in condition
    return bool(value["type"] == wanted)
