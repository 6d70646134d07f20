"""Canonical layout of a recipe's text: keys in the order of the reference, one blank line between sections.

Text moves line by line, with the comments above and beside it. Flow mappings, lists, quotes and values stay as written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from pydantic import BaseModel

from .recipe import (
    ComposedPolicySection,
    DataSection,
    EvaluationSection,
    OptimizerSection,
    Recipe,
    ScheduleSection,
    SourceSection,
    TrainingSection,
)
from .yaml.document import parse
from .yaml.nodes import Key, KeyPath, Node

_SECTIONS: Mapping[KeyPath, type[BaseModel]] = {
    (): Recipe,
    ("data",): DataSection,
    ("data", "sources", "*"): SourceSection,
    ("policy",): ComposedPolicySection,
    ("training",): TrainingSection,
    ("training", "optimizer"): OptimizerSection,
    ("training", "schedule"): ScheduleSection,
    ("evaluation",): EvaluationSection,
}
_FIRST = ("type", "reads")
_BLANK = re.compile(r"\n{3,}")


def formatted(text: str, name: str = "<recipe>") -> str:
    """Return the text in canonical layout, with the same values and comments; formatting it again changes nothing.

    Raise RecipeError if it is not YAML.
    """
    root = parse(text, name).root
    lines = [line.rstrip() for line in (root.span.source.text or "").split("\n")]
    lines = [*_ordered(lines, root, (), 0, len(lines)), ""]
    return _BLANK.sub("\n\n", "\n".join(lines)).strip("\n") + "\n"


def _ordered(lines: Sequence[str], node: Node, path: KeyPath, start: int, end: int) -> list[str]:
    """Return lines `start` to `end` (exclusive), which hold a value, in order."""
    entries = _blocks(node)
    if not entries:
        return list(lines[start:end])
    begins = [_begin(lines, each[1], start, top=not path and not index) for index, each in enumerate(entries)]
    chunks: dict[Key, list[str]] = {}
    for (key, line, child), first, stop in zip(entries, begins, [*begins[1:], end], strict=True):
        nested = _ordered(lines, child, (*path, key), line + 1, stop)
        chunks[key] = [*lines[first : line + 1], *nested]
    head = list(lines[start : begins[0]])
    moved = [chunks[key] for key in _order(path, list(chunks))]
    return head + (list(chain.from_iterable(moved)) if path else _spaced(moved))


def _blocks(node: Node) -> list[tuple[Key, int, Node]]:
    """Return key, line from 0, and value of each entry of a block mapping; empty for other values."""
    if not isinstance(node.content, dict):
        return []
    found: list[tuple[Key, int, Node]] = [
        (key, entry.key.line - 1, entry.node) for key, entry in node.content.items()
    ]
    columns = {entry.key.column for entry in node.content.values()}
    if len({line for _, line, _ in found}) < len(found) or len(columns) > 1:
        return []
    flow = (node.span.source.lines[node.span.line - 1][node.span.column - 1 :] or " ")[0] == "{"
    return [] if flow else found


def _begin(lines: Sequence[str], line: int, start: int, *, top: bool) -> int:
    """Return the first line of the comments and blank lines above a key; those of the file stay at its top."""
    if top:
        return line
    while line > start and (not lines[line - 1] or lines[line - 1].lstrip().startswith("#")):
        line -= 1
    return line


def _order(path: KeyPath, keys: list[Key]) -> list[Key]:
    """Return the keys of a mapping in the order of its section; those of parts with `type` first."""
    section = next((model for place, model in _SECTIONS.items() if _matches(place, path)), None)
    if section is not None:
        rank = [field.alias or name for name, field in section.model_fields.items()]
    elif "type" in keys:
        rank = list(_FIRST)
    else:
        return keys
    return sorted(keys, key=lambda key: rank.index(str(key)) if key in rank else len(rank))


def _matches(place: KeyPath, path: KeyPath) -> bool:
    return len(place) == len(path) and all(
        one in ("*", other) for one, other in zip(place, path, strict=True)
    )


def _spaced(chunks: Sequence[list[str]]) -> list[str]:
    """Return top-level entries with a blank line around those of several lines."""
    found: list[str] = []
    long = False
    for number, chunk in enumerate(chunks):
        core = [*chunk]
        while core and not core[0]:
            core.pop(0)
        while core and not core[-1]:
            core.pop()
        now = sum(not line.lstrip().startswith("#") for line in core) > 1
        found += ([""] if number and (now or long) else []) + core
        long = now
    return found


__all__ = ["formatted"]
