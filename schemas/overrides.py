"""Changes to a recipe from outside: `-o training.steps=10` on the command line, `Builder.override({...})` in Python.

A value is YAML, so `-o policy.head.hidden=[64, 64]` is a list. List items go by number: `transforms.0.size=64`. Keys
that hold a dot are quoted: `transforms.1.modes."observation.state"=q99`. Missing parents are created, and the schema
judges the result, so that a misspelt path is reported like a misspelt key, at its place in the override.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .diagnostics import Diagnostic, Source, Span
from .document import Document
from .errors import RecipeError
from .nodes import Entry, Key, KeyPath, Node, dotted, plain_node
from .yaml_parser import Parser

_STEP = re.compile(r"""(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^.='"\s]+))(?P<after>[.=]|$)""")
_FLAG = "-o "


def apply(document: Document, overrides: Iterable[str]) -> Document:
    """The document with each `path=value` applied in turn. Raises RecipeError with the findings of all of them."""
    found: list[Diagnostic] = []
    for text in overrides:
        try:
            document = _apply(document, Source("<command line>", _FLAG + text))
        except RecipeError as error:
            found += error.diagnostics
    if found:
        raise RecipeError(found)
    return document


def apply_mapping(document: Document, overrides: Mapping[str, Any]) -> Document:
    """The same from Python, by dotted paths. A mapping is merged into the recipe's, unless it has a `type`.

    Raises RecipeError with the findings of all of them.
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
    steps = _steps(text[len(_FLAG) :], source, len(_FLAG))
    start = steps[-1][1].end_column
    equals = text.find("=", start - 1)
    if equals < 0:
        span = Span(source, 1, len(_FLAG) + 1, 1, len(text) + 1)
        raise RecipeError(
            [Diagnostic("E010 bad-override", "an override is `path=value`", span, "there is no `=`")]
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
    """Keys of a dotted path, each with its place; stops at `=`."""
    steps: list[tuple[str, Span]] = []
    position = 0
    while True:
        match = _STEP.match(text, position)
        if match is None:
            span = Span(source, 1, offset + position + 1, 1, offset + position + 2)
            message = "an override is `path=value`, with a path such as `training.steps`"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, "not a path")])
        key = next(group for group in match.group("double", "single", "plain") if group is not None)
        end = offset + match.start("after") + 1
        steps.append((key, Span(source, 1, offset + position + 1, 1, end)))
        if match["after"] != ".":
            return steps
        position = match.end()


def _put(document: Document, steps: list[tuple[str, Span]], node: Node) -> Document:
    """The document with `node` at the path; parents that are missing are created."""
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
            message = f"`{dotted(path)}` is a single value: it has nothing called `{key}`"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, "cannot go further down")])
    return document.replaced(path, Entry(steps[-1][1], node))


def _nested(steps: list[tuple[str, Span]], node: Node) -> Node:
    for key, span in reversed(steps):
        if key.isdigit():
            message = "the recipe does not write this list, so that its items cannot be changed one by one"
            raise RecipeError([Diagnostic("E010 bad-override", message, span, "override the whole list")])
        node = Node(span, {key: Entry(span, node)})
    return node


def _index(key: str, span: Span, path: KeyPath, node: Node) -> int:
    assert isinstance(node.content, tuple)
    size = len(node.content)
    if key.isdigit() and int(key) < size:
        return int(key)
    known = f"it has {size} item{'s' * (size != 1)}, counted from 0"
    message = f"`{dotted(path)}` is a list: {known}"
    raise RecipeError([Diagnostic("E010 bad-override", message, span, "no such item")])
