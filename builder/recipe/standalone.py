"""The text of a recipe as it was trained: overrides applied, and paths that resolve from anywhere."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ...schemas.composition import PATH_KEYS
from ...schemas.errors import RecipeError
from ...schemas.json_schema import SCHEMA_FILE
from ...schemas.paths import exists, expanded
from ...schemas.yaml.document import Document, parse
from ...schemas.yaml.nodes import KeyPath

_HEADER = re.compile(r"^(#\s*yaml-language-server:\s*\$schema=)(\S+)", re.MULTILINE)


def standalone(document: Document, *, located: bool) -> str:
    """Return the author's text with the overrides in place, comments kept.

    With `located`, paths that exist relative to the recipe become absolute, that of the JSON Schema included.
    If the text cannot be changed in place, as with aliases, write it again without comments.
    """
    wanted = with_absolute_paths(document.value, document.directory) if located else document.value
    text = document.root.span.source.text
    if text is None:
        return _dumped(wanted)
    text = _with_schema(text, document.directory) if located else text
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
        pass  # written again below
    return _dumped(wanted)


def same_spelling(
    recipe: Mapping[str, Any], directory: Path, before: Mapping[str, Any], before_directory: Path
) -> dict[str, Any]:
    """Return a resolved recipe with the paths of another one, wherever both name the same file."""
    result = copy.deepcopy(dict(recipe))
    for path in _path_options(recipe):
        ours, theirs = _at(recipe, path), _at(before, path)
        if isinstance(ours, str) and isinstance(theirs, str) and ours != theirs:
            one, other = directory / expanded(ours), before_directory / expanded(theirs)
            if exists(one) and exists(other) and one.resolve() == other.resolve():
                _at(result, path[:-1])[path[-1]] = theirs
    return result


def with_absolute_paths(recipe: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return the recipe with absolute paths for files that exist relative to its directory."""
    result = copy.deepcopy(dict(recipe))
    for path in _path_options(recipe):
        value = _at(recipe, path)
        if isinstance(value, str) and exists(place := directory / expanded(value)):
            _at(result, path[:-1])[path[-1]] = str(place.resolve())
    return result


def _with_schema(text: str, directory: Path) -> str:
    """Return the text with an absolute path in the header by which editors find the JSON Schema."""

    def absolute(header: re.Match[str]) -> str:
        if "://" in header[2]:
            return header[0]
        given = directory / expanded(header[2])
        return header[1] + str((given if exists(given) else SCHEMA_FILE).resolve())

    return _HEADER.sub(absolute, text, count=1)


def _at(value: Any, path: KeyPath) -> Any:
    """Return the value at a path, or None."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _changed(node: Any, before: Any, wanted: Any) -> Any:
    """Return a node of the text with the values that differ replaced in place."""
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


def _path_options(recipe: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Yield the place of every option that may hold a path."""
    data = recipe.get("data")
    if isinstance(data, dict):
        yield "data", "path"
        for name in data.get("sources") or ():
            yield "data", "sources", name, "path"
    for index, entry in enumerate(recipe.get("imports") or ()):
        if str(entry).endswith(".py"):
            yield "imports", index
    nodes: list[KeyPath] = [("policy",), ("transforms",), ("collator",)]
    while nodes:
        place = nodes.pop()
        node = _at(recipe, place)
        if isinstance(node, dict):
            yield from ((*place, key) for key in PATH_KEYS if key in node)
            nodes += [(*place, key) for key in node]
        elif isinstance(node, list):
            nodes += [(*place, index) for index in range(len(node))]


def _dumped(recipe: dict[str, Any]) -> str:
    """Return the recipe as YAML, or as JSON, which is YAML, if YAML would not read back the same."""
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


__all__ = ["same_spelling", "standalone", "with_absolute_paths"]
