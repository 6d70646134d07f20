"""A recipe as plain values, each with its place in the source.

    document = read(Path("recipes/vit_mlp.yaml"))
    document.value["policy"]["head"]["hidden"]           # [512, 512]
    document.span(("policy", "head", "hidden", 1))       # recipes/vit_mlp.yaml:20:35

Documents are immutable; an override creates a new one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..diagnostics import Diagnostic, Source, Span
from ..errors import RecipeError
from ..paths import expanded, names_in
from .nodes import MAX_BYTES, Entry, Key, KeyPath, Node, plain_node
from .parser import Parser

_TOO_LARGE = f"the recipe is larger than {MAX_BYTES // 1_000_000} MB"

_DESCRIPTORS = ("/dev/fd/", "/proc/")
"""Pipes of a shell, `check <(command)`: unlike a named pipe, they have a writer."""


@dataclass(frozen=True)
class Document:
    """A whole recipe; its relative paths start from `directory`."""

    root: Node
    directory: Path

    @cached_property
    def value(self) -> dict[str, Any]:
        return dict(self.root.plain())

    def span(self, path: Sequence[Key], part: Literal["key", "value"] = "value") -> Span:
        """Return the place of the value at `path` or of its key, or else of its nearest existing ancestor."""
        node, key = self.root, Span(self.root.span.source)
        for step in path:
            if isinstance(node.content, dict) and step in node.content:
                entry = node.content[str(step)]
                node, key = entry.node, entry.key
            elif isinstance(node.content, tuple) and isinstance(step, int) and 0 <= step < len(node.content):
                node = node.content[step]
                key = node.span
            else:
                return key
        return key if part == "key" else node.span

    def origin(self, path: Sequence[Key]) -> Span | None:
        """Return the variable or environment variable that the value at `path` comes from, if any."""
        node = self.root
        for step in path:
            if isinstance(node.content, dict) and step in node.content:
                node = node.content[str(step)].node
            elif isinstance(node.content, tuple) and isinstance(step, int) and step < len(node.content):
                node = node.content[step]
            else:
                return None
        return node.origin

    def set_by(self, path: Sequence[Key]) -> tuple[tuple[Span, str], ...]:
        """Return the place of the variable that the value at `path` comes from, labeled for a finding."""
        origin = self.origin(path)
        return () if origin is None else ((origin, "the value is set here"),)

    def replaced(self, path: Sequence[Key], entry: Entry) -> Document:
        """Return a copy with another value at `path`, whose parents must exist."""
        return replace(self, root=_replaced(self.root, tuple(path), entry))

    def without(self, path: Sequence[Key]) -> Document:
        """Return a copy without the entry or item at `path`, which must exist."""
        return replace(self, root=_without(self.root, tuple(path)))


def _without(node: Node, path: KeyPath) -> Node:
    step, rest = path[0], path[1:]
    if isinstance(node.content, tuple):
        items = list(node.content)
        items[int(step) : int(step) + 1] = [_without(items[int(step)], rest)] if rest else []
        return replace(node, content=tuple(items))
    assert isinstance(node.content, dict)
    entries = dict(node.content)
    old = entries.pop(str(step))
    if rest:
        entries = {**node.content, str(step): Entry(old.key, _without(old.node, rest))}
    return replace(node, content=entries)


def _replaced(node: Node, path: KeyPath, entry: Entry) -> Node:
    if not path:
        return entry.node
    step, rest = path[0], path[1:]
    if isinstance(node.content, tuple):
        items = list(node.content)
        items[int(step)] = _replaced(items[int(step)], rest, entry)
        return Node(node.span, tuple(items))
    entries = dict(node.content) if isinstance(node.content, dict) else {}
    old = entries.get(str(step))
    if not rest:
        entries[str(step)] = entry
    elif old is not None:
        entries[str(step)] = Entry(old.key, _replaced(old.node, rest, entry))
    else:
        raise KeyError(step)
    return Node(node.span, entries)


def read(path: Path, *, base_of: Span | None = None) -> Document:
    """Parse a recipe file, or stdin for `-`. `base_of` is the place that names it as a base.

    Raises:
        RecipeError: The file is invalid, unreadable or larger than MAX_BYTES.
    """
    if path == Path("-"):
        return _parsed(sys.stdin.buffer.read(MAX_BYTES + 1), Source("<stdin>"), Path())
    path = expanded(path)
    source = Source(os.fspath(path), base_of=base_of)
    if "\0" in source.name:
        raise _unreadable(source, "cannot read the recipe: its path contains a NUL character")
    if not source.name.startswith(_DESCRIPTORS) and os.path.exists(path) and path.is_fifo():  # noqa: PTH110
        raise _unreadable(source, "cannot read the recipe: it is a named pipe; pipe it to stdin, `-`")
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise _unreadable(source, f"cannot read the recipe: {reason}", _cure(path)) from error
    return _parsed(content, source, path.parent)


def _parsed(content: bytes, source: Source, directory: Path) -> Document:
    if len(content) > MAX_BYTES:
        raise _unreadable(source, _TOO_LARGE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(
            source, f"the recipe is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error
    return _document(source, text, directory)


def _unreadable(source: Source, message: str, help: str = "") -> RecipeError:
    return RecipeError([Diagnostic("E009 unreadable-file", message, Span(source), help=help)])


def _cure(path: Path) -> str:
    """Return what may have been meant by a recipe that cannot be read; empty if nothing is similar."""
    if (path / "meta" / "info.json").is_file():
        return f"this is a dataset; `policysmith new --data {path}` writes a recipe for it"
    recipes = [name for name in names_in(path.parent) if name.endswith((".yaml", ".yml"))]
    meant = get_close_matches(path.name, recipes, n=1)
    return f"did you mean `{path.parent / meant[0]}`?" if meant else ""


def parse(text: str, name: str = "<recipe>", *, directory: Path | None = None) -> Document:
    """Parse the text of a recipe, or raise RecipeError with every finding."""
    if len(text) > MAX_BYTES:
        raise _unreadable(Source(name), _TOO_LARGE)
    return _document(Source(name), text, directory if directory is not None else Path())


def _document(source: Source, text: str, directory: Path) -> Document:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return Document(Parser(replace(source, text=text)).recipe(), directory)


def from_mapping(
    value: Mapping[str, Any], name: str = "recipe", *, directory: Path | None = None
) -> Document:
    """Build a document from plain Python values, or raise RecipeError if YAML cannot represent them."""
    root = plain_node(value, Source(name), ())
    return Document(root, directory if directory is not None else Path())
