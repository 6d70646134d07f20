"""Wording of values, types and limits in diagnostics."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .yaml.nodes import KeyPath, dotted
from .yaml.scalars import resolve

_RANGE = re.compile(r"(\d{0,9}):(\d{1,9})")

_SIZE = re.compile(r"(\d{1,5}) ?x ?(\d{1,5})")
_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


def where(path: KeyPath) -> str:
    """Return a path in backticks, or `the recipe` for an empty one."""
    return f"`{shortened(dotted(path))}`" if path else "the recipe"


def shortened(text: str, most: int = 120) -> str:
    """Return `text` with its middle elided if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def found(value: object) -> str:
    """Describe a value, to follow the word `found`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    return f"the number {value}" if isinstance(value, float) else json.dumps(value)


def quoted(value: object) -> str:
    """Return a value as JSON, elided if it is long."""
    if isinstance(value, str):
        value = value[:61]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + ('..."' if isinstance(value, str) else "...")


def expected(types: str | Sequence[str]) -> str:
    """Describe the types that a schema allows."""
    names = [types] if isinstance(types, str) else [name for name in types if name != "null"]
    return either(_TYPES[name] for name in names)


def either(words: Iterable[str], *, conjunction: str = "or") -> str:
    """Join words as `a`, `a or b`, `a, b or c`."""
    *first, last = list(words)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def correction(value: object, types: str | Sequence[str], text: str) -> tuple[str, str | None]:
    """Return a label that tells how to correct a value of the wrong type, and the text to write, if one is right.

    `text` is the source text of the value.
    """
    allowed = {types} if isinstance(types, str) else set(types)
    unknown = f"expected {expected(types)}"
    short = not isinstance(value, str) or len(value) <= _LONGEST_NAME
    bounds = _RANGE.fullmatch(value) if isinstance(value, str) and short else None
    if value is None or isinstance(value, dict):
        return unknown, None
    if bounds and {"array", "integer"} & allowed:
        numbers = _numbers(int(bounds[1] or 0), int(bounds[2]))
        return f"write the numbers as a list: {numbers}", None if "..." in numbers else numbers
    if "array" in allowed and isinstance(value, str) and (size := _SIZE.fullmatch(value)):
        return f"write [height, width], such as [{size[1]}, {size[2]}]", None
    if "array" in allowed:
        wrapped = f"[{shortened(text) or quoted(value)}]"
        return f"write {wrapped}", wrapped if short else None
    if isinstance(value, str):
        return (_correct_string(value, allowed, text) if short else None) or (unknown, None)
    if "string" in allowed and isinstance(value, (bool, int, float)):
        quotes = f'"{shortened(text) or quoted(value)}"'
        return f"add quotes: {quotes}", quotes
    if "integer" in allowed and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}", str(int(value))
    return unknown, None


def _numbers(first: int, end: int) -> str:
    """Return the numbers of a Python range as a list, elided if it is long."""
    numbers = [str(number) for number in range(first, min(end, first + 4))]
    if end - first > len(numbers):
        numbers[-1:] = ["...", str(end - 1)]
    return f"[{', '.join(numbers)}]"


def _correct_string(value: str, allowed: set[str], text: str) -> tuple[str, str] | None:
    if "boolean" in allowed:
        word = value.lower()
        if word in ("yes", "on", "true", "y", "no", "off", "false", "n"):
            truth = "true" if word in ("yes", "on", "true", "y") else "false"
            return f"write {truth}", truth
    try:
        number = resolve(value.replace("_", ""))
    except ValueError:
        return None
    wanted = {"number"} if isinstance(number, float) else {"integer", "number"}
    if type(number) not in (int, float) or not wanted & allowed:
        return None
    plain = "_" not in value and text != value
    return (f"remove the quotes: {value}", value) if plain else (f"write {number}", str(number))


_LONGEST_NAME = 200  # a longer string is not a misspelled name


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the entry of `known` that is most similar to `name`, if any; case is ignored."""
    if len(name) > _LONGEST_NAME:
        return None
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, cutoff: float = 0.6) -> str:
    """Return a question that suggests the most similar entry of `known`, or `otherwise` if none is similar."""
    meant = near(name, known, cutoff)
    return otherwise if meant is None else f"did you mean `{meant}`?"


_LIMITS: Mapping[str, str] = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "greater than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
}
_COUNTS: Mapping[str, tuple[str, str, str]] = {
    "minItems": ("at least", "item", "items"),
    "maxItems": ("at most", "item", "items"),
    "minProperties": ("at least", "entry", "entries"),
    "maxProperties": ("at most", "entry", "entries"),
    "minLength": ("at least", "character", "characters"),
    "maxLength": ("at most", "character", "characters"),
}


def limit(keyword: str, wanted: Any, value: Any) -> tuple[str, str]:
    """Describe a violated limit, to follow `must` and as a label; both empty for an unknown keyword."""
    if keyword in _LIMITS:
        text = _LIMITS[keyword].format(wanted)
        return f"be {text}, found {value}", text
    if keyword in _COUNTS:
        bound, one, many = _COUNTS[keyword]
        text = f"{bound} {wanted} {one if wanted == 1 else many}"
        return f"have {text}, found {len(value)}", text
    if keyword == "uniqueItems":
        return "not contain duplicates", "contains duplicates"
    if keyword == "pattern":
        return f"match `{wanted}`, found {quoted(value)}", "does not match"
    return "", ""


def alternatives(branches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe the branches of an `anyOf`, without null."""
    words: list[str] = []
    for branch in branches:
        values = branch.get("enum", [branch["const"]] if "const" in branch else [])
        if values:
            words += [quoted(value) for value in values]
        elif branch.get("type", "null") != "null":
            words.append(expected(branch["type"]))
    return words


def about(name: str, schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note with the description and default of an option, if it has a description."""
    text = schema.get("description", "")
    default = schema.get("default")
    if text and default not in (None, {}, []):
        text += f" Default: {default if isinstance(default, str) else quoted(default)}."
    return (f"`{name}`: {text}",) if text else ()
