"""Values of a recipe with their places in the source."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..diagnostics import Diagnostic, Source, Span
from ..errors import RecipeError
from .scalars import Scalar

Key = str | int
KeyPath = tuple[Key, ...]

MAX_DEPTH = 40
MAX_NODES = 100_000
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Node:
    """A value and its place. `size` and `depth` cover everything below it, with aliases expanded.

    Attributes:
        origin: The place of the variable, or the environment variable, that the value comes from, if any.
        removes: Whether a null stands for the removal of a value below it.
    """

    span: Span
    content: Scalar | tuple[Node, ...] | dict[str, Entry]
    origin: Span | None = None
    removes: bool = False

    @cached_property
    def children(self) -> tuple[Node, ...]:
        if isinstance(self.content, dict):
            return tuple(entry.node for entry in self.content.values())
        return self.content if isinstance(self.content, tuple) else ()

    @cached_property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)

    @cached_property
    def depth(self) -> int:
        return 1 + max((child.depth for child in self.children), default=0)

    def plain(self) -> Any:
        """Return the value as dicts, lists and scalars, without sharing any."""
        if isinstance(self.content, dict):
            return {key: entry.node.plain() for key, entry in self.content.items()}
        if isinstance(self.content, tuple):
            return [item.plain() for item in self.content]
        return self.content


@dataclass(frozen=True)
class Entry:
    """The place of a key, and its value."""

    key: Span
    node: Node


def dotted(path: Sequence[Key]) -> str:
    """Return a path such as `policy.head.hidden[1]`; keys that contain a dot are quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (f'"{step}"' if "." in step else step)
    return text


def plain_node(value: object, source: Source, path: KeyPath) -> Node:
    """Build a node from a plain Python value; tuples become lists, and paths become strings.

    Raises:
        RecipeError: YAML cannot represent the value.
    """
    span = Span(source, path=dotted(path))
    if len(path) > MAX_DEPTH:
        raise RecipeError(
            [
                Diagnostic(
                    "E008 refused-yaml",
                    f"the recipe is nested more than {MAX_DEPTH} levels deep, or endlessly",
                    span,
                )
            ]
        )
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            message = f"keys must be strings, found {strange[0]!r}"
            raise RecipeError([Diagnostic("E005 wrong-type", message, span)])
        return Node(span, {str(k): _plain_entry(v, source, (*path, str(k))) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return Node(span, tuple(plain_node(item, source, (*path, i)) for i, item in enumerate(value)))
    if isinstance(value, os.PathLike):
        return Node(span, os.fspath(value))
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(
            [Diagnostic("E007 invalid-value", f"`{span.path}` must be finite, found {value}", span)]
        )
    for plain in (str, bool, int, float):
        if isinstance(value, plain):
            return Node(span, plain(value))
    if value is None:
        return Node(span, None)
    message = (
        f"`{span.path}` is a {type(value).__module__}.{type(value).__qualname__}, which YAML cannot represent"
    )
    raise RecipeError(
        [Diagnostic("E005 wrong-type", message, span, help="convert it to a plain Python value")]
    )


def _plain_entry(value: object, source: Source, path: KeyPath) -> Entry:
    return Entry(Span(source, path=dotted(path)), plain_node(value, source, path))
