"""Migration of a recipe's text to the latest version of the language; comments and layout stay.

    STEPS[1] = (Renamed("training.rate", "lr"), Removed("training.float8"))      # from version 1 to 2

A change edits the text at the places of the values it concerns, and nothing else. `*` in a path stands for any key
or item, and `of` for a part's type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .diagnostics import Diagnostic, Span
from .errors import RecipeError
from .yaml.document import parse
from .yaml.nodes import Entry, KeyPath, Node, dotted

VERSION = "recipe"


@dataclass(frozen=True)
class Place:
    """An entry of a mapping, and the mapping."""

    path: KeyPath
    entry: Entry
    parent: Node


@dataclass(frozen=True)
class Change:
    """A change of one option. `of` limits it to parts of that type."""

    path: str
    of: str | None = None

    def edited(self, text: str, place: Place) -> str:
        """Return the text with the change made at a place."""
        raise NotImplementedError

    def says(self, place: Place) -> str:
        """Return what the change does, for the user."""
        raise NotImplementedError

    def concerns(self, place: Place) -> bool:
        """Return whether the change is still to be made at a place of its path."""
        return True


@dataclass(frozen=True, kw_only=True)
class Renamed(Change):
    """Another key for the same value."""

    to: str

    def edited(self, text: str, place: Place) -> str:
        return _replaced(text, place.entry.key, self.to)

    def says(self, place: Place) -> str:
        return f"`{dotted(place.path)}` is now called `{self.to}`"


@dataclass(frozen=True, kw_only=True)
class Changed(Change):
    """Another value in place of a single one; `value` returns it, or the same for values to keep."""

    value: Callable[[Any], Any]

    def concerns(self, place: Place) -> bool:
        return bool(self.value(place.entry.node.plain()) != place.entry.node.plain())

    def edited(self, text: str, place: Place) -> str:
        return _replaced(text, place.entry.node.span, json.dumps(self.value(place.entry.node.plain())))

    def says(self, place: Place) -> str:
        before = place.entry.node.plain()
        return f"`{dotted(place.path)}` was {json.dumps(before)} and is {json.dumps(self.value(before))}"


@dataclass(frozen=True, kw_only=True)
class Removed(Change):
    """An option that exists no more, and why."""

    why: str

    def edited(self, text: str, place: Place) -> str:
        return _without(text, place)

    def says(self, place: Place) -> str:
        return f"`{dotted(place.path)}` is removed: {self.why}"


LATEST = 1
"""Version of the language that this package reads."""
STEPS: dict[int, tuple[Change, ...]] = {}
"""Changes from each earlier version to the next."""


def migrated(
    text: str,
    name: str = "<recipe>",
    *,
    version: int | None = None,
    steps: Mapping[int, Sequence[Change]] = STEPS,
    latest: int = LATEST,
) -> tuple[str, list[str]]:
    """Return the text of a recipe in the latest version, and what was changed, each with its place.

    Args:
        text: The recipe.
        name: Its name in messages.
        version: Version of a recipe that names none, because its base does.
        steps: Changes from each version to the next.
        latest: Version to reach.

    Raises:
        RecipeError: It is not YAML, or its version is not known.
    """
    held = parse(text, name).value.get(VERSION, version)
    if type(held) is not int or not 1 <= held <= latest:
        raise RecipeError([_unknown(text, name, held, latest)])
    said: list[str] = []
    for number in range(held, latest):
        for change in steps[number]:
            while (place := _next(parse(text, name).root, change)) is not None:
                said.append(f"{place.entry.key}: {change.says(place)}")
                text = change.edited(text, place)
    root = parse(text, name).root.content
    if held != latest and isinstance(root, dict) and VERSION in root:
        text = _replaced(text, root[VERSION].node.span, str(latest))
    return text, said


def version_cure(version: object) -> str:
    """Return the cure of a recipe of another version than the latest; empty for what is no version."""
    if type(version) is not int or version < 1:
        return ""
    return "run `policysmith migrate`" if version < LATEST else "update policysmith, or write `recipe: 1`"


def _unknown(text: str, name: str, version: object, latest: int) -> Diagnostic:
    document = parse(text, name)
    message = f"`{VERSION}` must be a version from 1 to {latest}, found {json.dumps(version)}"
    help = version_cure(version) or f"write `{VERSION}: {latest}`"
    return Diagnostic("E007 invalid-value", message, document.span((VERSION,)), help=help)


def _next(root: Node, change: Change) -> Place | None:
    return next((place for place in _places(root, change) if change.concerns(place)), None)


def _places(root: Node, change: Change) -> Iterator[Place]:
    """Yield the places that match the path of a change."""

    def walk(node: Node, steps: Sequence[str], path: KeyPath) -> Iterator[Place]:
        wanted, rest = steps[0], steps[1:]
        if isinstance(node.content, dict):
            kind = node.content.get("type")
            fits = rest or change.of is None or (kind is not None and kind.node.content == change.of)
            for key, entry in node.content.items() if fits else ():
                if wanted in ("*", key):
                    here = (*path, key)
                    yield from walk(entry.node, rest, here) if rest else [Place(here, entry, node)]
        elif isinstance(node.content, tuple):
            for index, item in enumerate(node.content):
                if rest and wanted in ("*", str(index)):
                    yield from walk(item, rest, (*path, index))

    return walk(root, change.path.split("."), ())


def _replaced(text: str, span: Span, new: str) -> str:
    start, end = _offset(text, span.line, span.column), _offset(text, span.end_line, span.end_column)
    return text[:start] + new + text[end:]


def _without(text: str, place: Place) -> str:
    """Return the text without an entry: its lines and the comments right above, or its part of a line."""
    key, value = place.entry.key, place.entry.node.span
    lines = text.split("\n")
    before, after = lines[key.line - 1][: key.column - 1], lines[value.end_line - 1][value.end_column - 1 :]
    if not before.strip() and (not after.strip() or after.lstrip().startswith("#")):
        first = key.line - 1
        while first and lines[first - 1].startswith(f"{before}#"):
            first -= 1
        return "\n".join(lines[:first] + lines[value.end_line :])
    start = _offset(text, key.line, key.column)
    end = _offset(text, value.end_line, value.end_column)
    if end <= _offset(text, key.end_line, key.end_column):  # no value
        end = text.index(":", end) + 1
    rest = text[end:].lstrip()
    if rest.startswith(","):
        return text[:start] + rest[1:].lstrip(" ")
    return text[:start].rstrip().removesuffix(",") + text[end:].lstrip(" ")


def _offset(text: str, line: int, column: int) -> int:
    return sum(len(each) + 1 for each in text.split("\n")[: line - 1]) + column - 1


__all__ = ["LATEST", "STEPS", "Change", "Changed", "Removed", "Renamed", "migrated", "version_cure"]
