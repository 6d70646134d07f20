"""Plain scalars of YAML 1.2: `1e-3` is a number; `1_000`, `yes` and `2026-01-01` are strings."""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"(true|True|TRUE)|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LONGEST = 40


def resolve(text: str) -> Scalar:
    """Return the value of a plain scalar, or raise ValueError for a number beyond 64 bits or JSON."""
    if _NULL.fullmatch(text):
        return None
    if boolean := _BOOL.fullmatch(text):
        return boolean[1] is not None
    if _INT.fullmatch(text):
        if len(text) > _LONGEST or not fits(number := _integer(text)):
            raise ValueError("does not fit in 64 bits")
        return number
    if _SPECIAL.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        raise ValueError("is not a finite number")
    return float(text) if _FLOAT.fullmatch(text) else text


def fits(number: int) -> bool:
    """Return whether an integer fits in 64 bits, with its sign."""
    return -(2**63) <= number < 2**63


def _integer(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
