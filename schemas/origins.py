"""The place that sets each value of a recipe: file, line and column, an override, or an environment variable.

    origins(document)       # {"policy.head.hidden": "recipes/act.yaml:20:13", "training.steps": "-o training.steps=10"}

Values that nothing sets have their default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .diagnostics import Span
from .overrides import COMMAND_LINE
from .yaml.document import Document
from .yaml.nodes import KeyPath, Node, dotted

DEFAULT = "default"


def origins(document: Document, *, portable: bool = False) -> dict[str, str]:
    """Return the place of every value by its dotted path; lists from a single source have one place.

    With `portable`, files are named relative to the recipe's directory, for recipes that travel.
    """
    return {
        dotted(path): _shown(span, document.directory if portable else None)
        for path, span in _places(document.root, ())
    }


def origin_of(path: KeyPath, places: Mapping[str, str]) -> str:
    """Return the place that sets the value at `path`, a part of it, or the list around it; or `default`."""
    key = dotted(path)
    around = (dotted(path[:length]) for length in range(len(path), -1, -1))
    within = (place for other, place in places.items() if other.startswith((f"{key}.", f"{key}[")))
    return next((places[other] for other in around if other in places), None) or next(within, DEFAULT)


def _places(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, Span]]:
    """Yield path and place of every single value, empty collection, and list of single values."""
    if node.children and not _is_uniform(node):
        entries = node.content.items() if isinstance(node.content, dict) else enumerate(node.children)
        for step, child in entries:
            yield from _places(child if isinstance(child, Node) else child.node, (*path, step))
    else:
        yield path, node.origin or node.span


def _is_uniform(node: Node) -> bool:
    """Return whether a node is a list of single values that come from where the list does."""
    return isinstance(node.content, tuple) and all(
        not isinstance(item.content, dict | tuple)
        and item.origin is None
        and item.span.source is node.span.source
        for item in node.content
    )


def _shown(span: Span, directory: Path | None) -> str:
    if span.source.name == COMMAND_LINE:
        return span.source.text or COMMAND_LINE
    if directory is None or not Path(span.source.name).is_file():
        return str(span)
    place = os.path.relpath(span.source.name, directory)
    return str(span).replace(span.source.name, place, 1)


__all__ = ["DEFAULT", "origin_of", "origins"]
