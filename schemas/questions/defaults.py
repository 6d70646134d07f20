"""The default of every option, from the shipped JSON Schema: a recipe in full, without torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..json_schema import Schema, SchemaTree, nullable, shipped_schema


def with_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a valid recipe with every default filled in. Options of unshipped parts stay as they are."""
    tree = SchemaTree(shipped_schema())
    filled = _filled(tree, tree.root, copy.deepcopy(dict(recipe)))
    return {key: value for key, value in filled.items() if key not in ("base", "vars")}


def _filled(tree: SchemaTree, schema: Schema, value: Any) -> Any:
    if isinstance(value, dict):
        for key, child in tree.expand(schema, value).get("properties", {}).items():
            if key not in value and ("default" in child or nullable(child)):
                value[key] = copy.deepcopy(child.get("default"))
        known = {key: child for key, child, _ in tree.below(schema, value)}
        return {key: _filled(tree, known[key], item) if key in known else item for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(tree, child, item) for _, child, item in tree.below(schema, value)]
    return value


def without_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a valid recipe without the options that are at their default; `with_defaults` fills them in again."""
    tree = SchemaTree(shipped_schema())
    bare: dict[str, Any] = _bare(tree, tree.root, copy.deepcopy(dict(recipe)))
    return bare


def _bare(tree: SchemaTree, schema: Schema, value: Any) -> Any:
    if isinstance(value, dict):
        options = tree.expand(schema, value).get("properties", {})
        known = {key: child for key, child, _ in tree.below(schema, value)}
        found = {key: _bare(tree, known[key], item) if key in known else item for key, item in value.items()}
        return {
            key: item
            for key, item in found.items()
            if key not in options or not _at_default(tree, options[key], item)
        }
    if isinstance(value, list):
        return [_bare(tree, child, item) for _, child, item in tree.below(schema, value)]
    return value


def _at_default(tree: SchemaTree, schema: Schema, bare: Any) -> bool:
    """Return whether an option, its own options at their default left out, is what a recipe without it means."""
    if "default" in schema:
        default = schema["default"]
        return bool(bare == _bare(tree, schema, copy.deepcopy(default)))
    return bare is None and nullable(schema)
