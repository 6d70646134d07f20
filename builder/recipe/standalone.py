"""The text of a recipe as it was trained: overrides written into it, and paths that resolve from anywhere."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ...schemas.composition import PATH_KEYS
from ...schemas.document import Document, parse
from ...schemas.errors import RecipeError
from ...schemas.paths import exists, expanded


def standalone(document: Document, *, located: bool) -> str:
    """The author's text with the overrides in their places, comments kept.

    With `located`, paths that exist relative to the recipe become absolute. Where the text cannot be changed in place,
    as with aliases, it is written anew, without comments.
    """
    wanted = _located(document.value, document.directory) if located else document.value
    text = document.root.span.source.text
    if text is None:
        return _dumped(wanted)
    before = parse(text).value
    if before == wanted:
        return text
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    stream = io.StringIO()
    try:
        yaml.dump(_changed(yaml.load(text), before, wanted), stream)
        if parse(stream.getvalue()).value == wanted:
            return stream.getvalue()
    except (YAMLError, RecipeError, LookupError, TypeError, ValueError, AttributeError):
        pass  # what cannot be kept as it was written is written anew
    return _dumped(wanted)


def _changed(node: Any, before: Any, wanted: Any) -> Any:
    """A node of the text with the values that differ replaced in place."""
    if isinstance(before, dict) and isinstance(wanted, dict):
        for key in before.keys() - wanted.keys():
            del node[key]
        for key, value in wanted.items():
            if key not in before:
                node[key] = value
            elif before[key] != value or type(before[key]) is not type(value):
                node[key] = _changed(node[key], before[key], value)
        return node
    if isinstance(before, list) and isinstance(wanted, list) and len(before) == len(wanted):
        for index, (old, new) in enumerate(zip(before, wanted, strict=True)):
            if old != new or type(old) is not type(new):
                node[index] = _changed(node[index], old, new)
        return node
    return wanted


def _located(recipe: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The recipe with its relative paths spelled out from its directory."""
    found = copy.deepcopy(recipe)

    def spell(holder: Any, key: Any) -> None:
        value = holder.get(key) if isinstance(holder, dict) else holder[key]
        if isinstance(value, str) and exists(place := directory / expanded(value)):
            holder[key] = str(place.resolve())

    data = found.get("data")
    for source in (data, *((data.get("sources") or {}).values() if isinstance(data, dict) else ())):
        spell(source, "path")
    for index, entry in enumerate(found.get("imports") or ()):
        if str(entry).endswith(".py"):
            spell(found["imports"], index)
    nodes: list[Any] = [found.get(section) for section in ("policy", "transforms", "collator")]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            for key in PATH_KEYS:
                spell(node, key)
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return found


def _dumped(recipe: dict[str, Any]) -> str:
    """The recipe as YAML, or as JSON, which is YAML, where that would be read otherwise."""
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(recipe, stream)
    try:
        if parse(stream.getvalue()).value == recipe:
            return stream.getvalue()
    except RecipeError:
        pass
    return json.dumps(recipe, indent=2) + "\n"


__all__ = ["standalone"]
