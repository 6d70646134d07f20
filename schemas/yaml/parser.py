"""Parser from YAML 1.2 text, core schema only, to nodes with exact places.

Rejected, each with its place: tags, directives other than `%YAML 1.2`, duplicate keys, keys that are not
strings, values that JSON cannot hold (`.nan`, `.inf`), aliases that contain themselves or expand to huge
trees.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from ..diagnostics import Diagnostic, ErrorCode, Source, Span, in_order
from ..errors import RecipeError
from .errors import explain
from .nodes import MAX_DEPTH, MAX_NODES, Entry, Node
from .scalars import resolve

_PROPERTIES = re.compile(r"(?:[&!]\S*|\s+|#[^\n]*)*")


class Parser:
    """Parser of one recipe, or one value, from a source."""

    def __init__(self, source: Source, *, shown: Source | None = None) -> None:
        """Start a parser; findings quote `shown`, a text with the same columns as the parsed one."""
        self.source = shown or source
        self._text = source.text or ""
        self._starts = [0, *(match.end() for match in re.finditer("\n", self._text))]
        self._anchors: dict[str, Node] = {}
        self._open: set[str] = set()
        self._read = 0
        self._found: list[Diagnostic] = []

    def recipe(self) -> Node:
        """Parse the only document, which must be a mapping, or raise RecipeError with every finding."""
        node = self.value()
        if node is None:
            self._fail("E001 invalid-yaml", "the recipe is empty", Span(self.source))
        if not isinstance(node.content, dict):
            kind = "a list" if isinstance(node.content, tuple) else "a single value"
            self._fail(
                "E005 wrong-type",
                f"a recipe must be a mapping, found {kind}",
                node.span,
                "expected `key: value`",
            )
        return node

    def value(self) -> Node | None:
        """Parse the only document, or raise RecipeError with every finding; None if there is no document."""
        yaml = YAML(typ="safe", pure=True)
        self._events = iter(yaml.parse(self._text))
        node: Node | None = None
        try:
            while not isinstance(event := next(self._events), StreamEndEvent):
                if isinstance(event, DocumentStartEvent):
                    self._document_start(event, first=node is None)
                    node = self._node(next(self._events), depth=1)
        except MarkedYAMLError as error:
            self._found.append(explain(error, self._text, self._span))
        except ReaderError as error:
            message = f"the recipe contains the control character U+{int(error.character):04X}"
            self._found.append(
                Diagnostic("E001 invalid-yaml", message, self._span(error.position, error.position + 1))
            )
        if self._found:
            raise RecipeError(in_order(self._found))
        return node

    def _document_start(self, event: Any, first: bool) -> None:
        span = self._span(event.start_mark.index, event.end_mark.index)
        if not first:
            self._fail(
                "E008 refused-yaml",
                "a file must contain a single recipe",
                span,
                "a second document starts here",
            )
        if event.tags or (event.version is not None and tuple(event.version) != (1, 2)):
            start = re.search(r"^%(?!YAML 1\.2).*", self._text, re.MULTILINE)
            span = self._span(*start.span()) if start else span
            message = "recipes are YAML 1.2 without directives"
            self._fail("E008 refused-yaml", message, span, "delete this line")

    def _node(self, event: Any, depth: int, empty: Span | None = None) -> Node:
        self._read += 1
        start, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor, self._span(start, end))
        if depth > MAX_DEPTH:
            span = self._span(start, end)
            self._fail("E008 refused-yaml", f"the recipe is nested more than {MAX_DEPTH} levels deep", span)
        if self._read > MAX_NODES:
            span = self._span(start, end)
            self._fail("E008 refused-yaml", f"the recipe has more than {MAX_NODES:,} keys and values", span)
        if event.tag is not None:
            self._refuse_tag(start)
        if event.anchor is not None or event.tag is not None:
            start = max(start, _PROPERTIES.match(self._text, start, max(start, end)).end())  # type: ignore[union-attr]
        if event.anchor is not None:
            self._open.add(event.anchor)
        if isinstance(event, ScalarEvent):
            node = self._scalar(event, start, end, empty)
        elif isinstance(event, MappingStartEvent):
            node = self._mapping(event, start, depth)
        else:
            node = self._sequence(event, start, depth)
        if node.size > MAX_NODES or node.depth > MAX_DEPTH:
            message = f"aliases expand to more than {MAX_NODES:,} values or {MAX_DEPTH} levels"
            self._fail("E008 refused-yaml", message, node.span, "expands to too much")
        if event.anchor is not None:
            self._open.discard(event.anchor)
            self._anchors[event.anchor] = node
        return node

    def _scalar(self, event: Any, start: int, end: int, empty: Span | None) -> Node:
        if event.style in ("|", ">"):
            end = start + len(self._text[start:end].rstrip())
        span = empty if start == end and empty is not None else self._span(start, end)
        if event.style is not None or event.tag is not None:
            return Node(span, str(event.value))
        try:
            return Node(span, resolve(event.value))
        except ValueError as error:
            message = f"`{event.value[:40]}` {error}"
            self._found.append(Diagnostic("E007 invalid-value", message, span, "not representable in JSON"))
            return Node(span, 0)

    def _mapping(self, event: Any, start: int, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        last = self._span(start, start)
        while not isinstance(ahead := next(self._events), MappingEndEvent):
            key = self._node(ahead, depth + 1)
            value = self._node(next(self._events), depth + 1, empty=key.span)
            last = value.span if _end(value.span) > _end(key.span) else key.span
            if getattr(ahead, "style", "") is None and key.content == "<<":
                self._merge(merged, value)
            elif not isinstance(key.content, str):
                text = key.span.text[:60]
                message = f"keys must be strings, found `{text}`"
                self._found.append(Diagnostic("E005 wrong-type", message, key.span, f'write "{text}"'))
            elif (first := entries.get(key.content)) is not None:
                message = f"duplicate key `{key.content[:60]}`"
                related = ((first.key, "first defined here"),)
                self._found.append(
                    Diagnostic("E002 duplicate-key", message, key.span, "defined again here", related)
                )
            else:
                entries[key.content] = Entry(key.span, value)
        end = _flow_end(ahead) if event.flow_style else None
        return Node(self._between(start, last, end), merged | entries if merged else entries)

    def _sequence(self, event: Any, start: int, depth: int) -> Node:
        items: list[Node] = []
        last = self._span(start, start + 1)
        while not isinstance(ahead := next(self._events), SequenceEndEvent):
            items.append(self._node(ahead, depth + 1, empty=last))
            last = items[-1].span
        return Node(self._between(start, last, _flow_end(ahead) if event.flow_style else None), tuple(items))

    def _merge(self, merged: dict[str, Entry], value: Node) -> None:
        maps = value.content if isinstance(value.content, tuple) else (value,)
        for node in maps:
            if not isinstance(node.content, dict):
                message = "`<<` takes a mapping or a list of mappings"
                self._found.append(Diagnostic("E005 wrong-type", message, node.span, "found neither"))
                return
            for key, entry in node.content.items():
                merged.setdefault(key, entry)

    def _alias(self, name: str, span: Span) -> Node:
        if name in self._open:
            self._fail("E008 refused-yaml", f"`*{name}` refers to a value that contains it", span)
        target = self._anchors.get(name)
        if target is None:
            known = (
                f"known anchors: {', '.join(self._anchors)}"
                if self._anchors
                else "no anchor is defined above"
            )
            self._fail("E001 invalid-yaml", f"no anchor `&{name}` precedes this alias", span, known)
        return Node(span, target.content)

    def _refuse_tag(self, start: int) -> None:
        tag = re.compile(r"(?:&\S+\s+)?(!\S*)").match(self._text, start)
        span = self._span(*tag.span(1)) if tag else self._span(start, start + 1)
        message = f"the tag `{span.text}` is not allowed; recipes are plain data"
        self._found.append(Diagnostic("E008 refused-yaml", message, span, "delete the tag"))

    def _fail(self, code: ErrorCode, message: str, span: Span, label: str = "") -> NoReturn:
        raise RecipeError(in_order([*self._found, Diagnostic(code, message, span, label)]))

    def _between(self, start: int, last: Span, end: int | None) -> Span:
        first = self._span(start, start)
        if end is not None:
            return self._span(start, end)
        return Span(self.source, first.line, first.column, *_end(last))

    def _span(self, start: int, end: int) -> Span:
        return Span(self.source, *self._position(start), *self._position(max(start, end)))

    def _position(self, index: int) -> tuple[int, int]:
        line = bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1


def _end(span: Span) -> tuple[int, int]:
    return span.end_line, span.end_column


def _flow_end(event: Any) -> int:
    return int(event.end_mark.index)
