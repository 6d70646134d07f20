"""Words for values, types and limits in diagnostics."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .nodes import KeyPath, dotted
from .yaml_scalars import resolve

_RANGE = re.compile(r"(\d{0,9}):(\d{1,9})")

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
    """The thing at a path, quoted."""
    return f"`{shortened(dotted(path))}`" if path else "the recipe"


def shortened(text: str, most: int = 120) -> str:
    """Return a name for a message, its middle left out where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2) :]}"


def found(value: object) -> str:
    """A value, for `..., found <this>`."""
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
    """A value as one would write it."""
    if isinstance(value, str):
        value = value[:61]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + '..."'


def expected(types: str | Sequence[str]) -> str:
    """The types that a schema allows."""
    names = [types] if isinstance(types, str) else [name for name in types if name != "null"]
    return either(_TYPES[name] for name in names)


def either(words: Iterable[str], *, conjunction: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    *first, last = list(words)
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def cure(value: object, types: str | Sequence[str], text: str) -> str:
    """What to write in place of a value of the wrong type, whose source text is `text`."""
    allowed = {types} if isinstance(types, str) else set(types)
    if value is None:
        return f"expected {expected(types)}"
    if "array" in allowed and not isinstance(value, dict):
        if isinstance(value, str) and (bounds := _RANGE.fullmatch(value)):
            return f"list the numbers: {_numbers(int(bounds[1] or 0), int(bounds[2]))}"
        return f"write [{shortened(text) or quoted(value)}]"
    if isinstance(value, str) and "integer" in allowed and (bounds := _RANGE.fullmatch(value)):
        return f"list the numbers: {_numbers(int(bounds[1] or 0), int(bounds[2]))}"
    if isinstance(value, str):
        short = len(value) <= _LONGEST_NAME
        return (_cure_string(value, allowed, text) if short else "") or f"expected {expected(types)}"
    if "string" in allowed and isinstance(value, (bool, int, float)):
        return f'add quotes: "{shortened(text) or quoted(value)}"'
    if "integer" in allowed and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return f"expected {expected(types)}"


def _numbers(first: int, end: int) -> str:
    """The numbers of a Python range as a list, the middle left out of a long one."""
    numbers = [str(number) for number in range(first, min(end, first + 4))]
    if end - first > len(numbers):
        numbers[-1:] = ["...", str(end - 1)]
    return f"[{', '.join(numbers)}]"


def _cure_string(value: str, allowed: set[str], text: str) -> str:
    if "boolean" in allowed:
        word = value.lower()
        if word in ("yes", "on", "true", "y", "no", "off", "false", "n"):
            return f"write {'true' if word in ('yes', 'on', 'true', 'y') else 'false'}"
    try:
        number = resolve(value.replace("_", ""))
    except ValueError:
        return ""
    wanted = {"number"} if isinstance(number, float) else {"integer", "number"}
    if type(number) not in (int, float) or not wanted & allowed:
        return ""
    return f"remove the quotes: {value}" if "_" not in value and text != value else f"write {number}"


_LONGEST_NAME = 200  # beyond it, nothing is misspelt


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """What was probably meant."""
    if len(name) > _LONGEST_NAME:
        return None
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


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
    """What a broken limit asks for, as `must ...` and as a label; empty for unknown keywords."""
    if keyword in _LIMITS:
        text = _LIMITS[keyword].format(wanted)
        return f"be {text}, found {value}", text
    if keyword in _COUNTS:
        bound, one, many = _COUNTS[keyword]
        text = f"{bound} {wanted} {one if wanted == 1 else many}"
        return f"have {text}, found {len(value)}", text
    if keyword == "uniqueItems":
        return "not name anything twice", "written twice"
    if keyword == "pattern":
        return f"match `{wanted}`, found {quoted(value)}", "does not match"
    return "", ""


def alternatives(branches: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the branches of an `anyOf` allow, but for null."""
    words: list[str] = []
    for branch in branches:
        values = branch.get("enum", [branch["const"]] if "const" in branch else [])
        if values:
            words += [quoted(value) for value in values]
        elif branch.get("type", "null") != "null":
            words.append(expected(branch["type"]))
    return words


def about(name: str, schema: Mapping[str, Any]) -> tuple[str, ...]:
    """A note on an option: its description and default."""
    text = schema.get("description", "")
    default = schema.get("default")
    if text and default not in (None, {}, []):
        text += f" Default: {default if isinstance(default, str) else quoted(default)}."
    return (f"`{name}`: {text}",) if text else ()
