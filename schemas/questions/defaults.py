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
