"""Overrides: `-o training.steps=10` on the command line, `Builder.override({...})` in Python.

Values are YAML, so `-o policy.head.hidden=[64, 64]` is a list. List items go by number:
`transforms.0.size=64` or `transforms[0].size=64`. Keys that contain a dot are quoted:
`transforms.1.modes."observation.state"=q99`. `~policy.necks.film` removes a value, and so does null if the option
does not accept it. Missing parents are created and the result is validated, so a misspelled path is reported like a misspelled
key, at its place in the override.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .diagnostics import Diagnostic, Source, Span
from .errors import RecipeError
from .wording import near, where
from .yaml.document import Document
from .yaml.nodes import Entry, Key, KeyPath, Node, dotted, plain_node
from .yaml.parser import Parser

_STEP = re.compile(
    r"""(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|\[(?P<index>\d+)\]|(?P<plain>[^.='"\s\[\]]+))(?P<after>\.|=|(?=\[)|$)"""
)
COMMAND_LINE = "<command line>"
"""Name of the source of overrides on the command line."""
_FLAG, _REMOVE = "-o ", "~"


def apply(document: Document, overrides: Iterable[str]) -> Document:
    """Return the document with each `path=value` applied in turn, or raise RecipeError with all findings."""
    found: list[Diagnostic] = []
    for text in overrides:
        try:
            document = _apply(document, Source(COMMAND_LINE, _FLAG + text))
        except RecipeError as error:
            found += error.diagnostics
    if found:
        raise RecipeError(found)
    return document


def apply_mapping(document: Document, overrides: Mapping[str, Any]) -> Document:
    """Return the document with the values at dotted paths replaced, or raise RecipeError with all findings.

    A mapping without a `type` is merged into that of the recipe.
    """
    found: list[Diagnostic] = []
    source = Source("<override>")
    for path, value in overrides.items():
        try:
            keys = [key for key, _ in _steps(path, Source(source.name, path))]
            steps = [(key, Span(source, path=dotted(keys[: n + 1]))) for n, key in enumerate(keys)]
            document = _merge(document, steps, value, source)
        except RecipeError as error:
            found += error.diagnostics
    if found:
        raise RecipeError(found)
    return document


def _apply(document: Document, source: Source) -> Document:
    text = source.text or ""
    if text.startswith(_FLAG + _REMOVE):
        prefix = _FLAG + _REMOVE
        return _removed(document, _steps(text[len(prefix) :], source, len(prefix)))
    steps = _steps(text[len(_FLAG) :], source, len(_FLAG))
    start = steps[-1][1].end_column
    equals = text.find("=", start - 1)
    if equals < 0:
        span = Span(source, 1, len(_FLAG) + 1, 1, len(text) + 1)
        raise RecipeError(
            [Diagnostic("E010 bad-override", "an override has the form `path=value`", span, "missing `=`")]
        )
    prefix = " " * (equals + 1)
    node = Parser(Source(source.name, prefix + text[equals + 1 :]), shown=source).value()
    return _put(document, steps, node or Node(Span(source, 1, equals + 1, 1, equals + 2), None))


def _merge(document: Document, steps: list[tuple[str, Span]], value: Any, source: Source) -> Document:
    here = tuple(key for key, _ in steps)
    if not isinstance(value, Mapping) or "type" in value or not value:
        return _put(document, steps, plain_node(value, source, here))
    for key, inner in value.items():
        path = dotted((*here, str(key)))
        document = _merge(document, [*steps, (str(key), Span(source, path=path))], inner, source)
    return document


def _steps(text: str, source: Source, offset: int = 0) -> list[tuple[str, Span]]:
    """Parse the keys of a dotted path up to `=`, each with its place."""
    steps: list[tuple[str, Span]] = []
    position = 0
    while True:
        match = _STEP.match(text, position)
        if match is None:
            span = Span(source, 1, offset + position + 1, 1, offset + position + 2)
            message = "an override has the form `path=value`, with a path such as `training.steps`"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, "invalid path")])
        key = next(group for group in match.group("double", "single", "index", "plain") if group is not None)
        end = offset + match.start("after") + 1
        steps.append((key, Span(source, 1, offset + position + 1, 1, end)))
        position = match.end()
        if match["after"] == "=" or (not match["after"] and position == len(text)):
            return steps


def _put(document: Document, steps: list[tuple[str, Span]], node: Node) -> Document:
    """Return the document with `node` at the path; missing parents are created."""
    path: list[Key] = []
    current: Node | None = document.root
    for depth, (key, span) in enumerate(steps):
        last = depth == len(steps) - 1
        if current is not None and isinstance(current.content, tuple):
            index = _index(key, span, tuple(path), current)
            path.append(index)
            current = current.content[index]
        elif current is not None and isinstance(current.content, dict):
            path.append(key)
            entry = current.content.get(key)
            current = entry.node if entry is not None else None
            if current is None or (current.content is None and not last):
                created = _nested(steps[depth + 1 :], node)
                return document.replaced(path, Entry(span, created))
        else:
            message = f"`{dotted(path)}` is a single value without a key `{key}`"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, "no such key")])
    if node.content is None:
        node = replace(node, removes=True)
    return document.replaced(path, Entry(steps[-1][1], node))


def _removed(document: Document, steps: list[tuple[str, Span]]) -> Document:
    """Return the document without the value at the path, or raise RecipeError if there is none."""
    path: list[Key] = []
    current = document.root
    for key, span in steps:
        if isinstance(current.content, tuple):
            path.append(_index(key, span, tuple(path), current))
            current = current.content[int(path[-1])]
            continue
        entries = current.content if isinstance(current.content, dict) else {}
        if key not in entries:
            meant = near(key, entries)
            label = f"did you mean `{meant}`?" if meant else "nothing to remove"
            message = f"{where(tuple(path))} has no key `{key}`"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, label)])
        path.append(key)
        current = entries[key].node
    return document.without(path)


def _nested(steps: list[tuple[str, Span]], node: Node) -> Node:
    for key, span in reversed(steps):
        if key.isdigit():
            message = "the recipe does not set this list, so its items cannot be overridden one by one"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, "override the whole list")])
        node = Node(span, {key: Entry(span, node)})
    return node


def _index(key: str, span: Span, path: KeyPath, node: Node) -> int:
    assert isinstance(node.content, tuple)
    size = len(node.content)
    if key.isdigit() and int(key) < size:
        return int(key)
    known = f"{size} item{'s' * (size != 1)}, counted from 0"
    message = f"`{dotted(path)}` is a list of {known}"
    raise RecipeError([Diagnostic("E010 bad-override", message, span, "no such item")])
