"""The ranges of a sweep: `training.optimizer.lr=log(1e-4,1e-2)` and `policy.head.width=64,128`."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...schemas.errors import PolicysmithError
from ...schemas.wording import near
from ...schemas.yaml.document import parse

Kind = Literal["uniform", "log", "int", "intlog"]
KINDS: tuple[Kind, ...] = ("uniform", "log", "int", "intlog")
_CALL = re.compile(r"(?P<kind>[a-z_]+)\((?P<inner>[^()]*)\)")
Values = dict[str, Any]
"""A value for every path of a sweep."""


@dataclass(frozen=True)
class Range:
    """Values of one path: `choices`, or numbers from `low` to `high`, of which a grid takes `points`."""

    path: str
    choices: tuple[Any, ...] = ()
    kind: Kind = "uniform"
    low: float = 0.0
    high: float = 0.0
    points: int | None = None

    @property
    def is_log(self) -> bool:
        """True if the range is even in the logarithm."""
        return self.kind in ("log", "intlog")

    @property
    def is_whole(self) -> bool:
        """True for whole numbers."""
        return self.kind in ("int", "intlog")

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values whose validity stands for the range: all choices, or both ends."""
        return self.choices or (self.at(0.0), self.at(1.0))

    def at(self, share: float) -> Any:
        """Return the number at a share of the range, from 0 to 1."""
        if self.is_log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.is_whole else float(f"{value:.6g}")

    def draw(self, generator: random.Random) -> Any:
        """Return a random value."""
        return generator.choice(self.choices) if self.choices else self.at(generator.random())

    def grid(self) -> tuple[Any, ...]:
        """Return the values of a grid. Raise PolicysmithError for a range without a number of points."""
        if self.choices:
            return self.choices
        if self.points is None:
            low, high = (f"{end:g}" for end in (self.low, self.high))
            raise PolicysmithError(
                f"a grid needs the number of points of `{self.path}`: write `{self.kind}({low},{high},5)`, or choose "
                "`--method random`"
            )
        steps = max(1, self.points - 1)
        return tuple(dict.fromkeys(self.at(position / steps) for position in range(self.points)))


def parse_range(text: str) -> Range:
    """Parse `path=values`. Raise PolicysmithError for another form."""
    path, equals, values = text.partition("=")
    path, values = path.strip(), values.strip()
    if not equals or not path or not values:
        raise PolicysmithError(
            f"`-s {text}` has no values; write `path=64,128` or `path=log(1e-4,1e-2)` with a path such as `training.seed`"
        )
    call = _CALL.fullmatch(values)
    if call is None:
        return Range(path, choices=_choices(path, values))
    kind, inner = call["kind"], [part.strip() for part in call["inner"].split(",")]
    if kind not in KINDS:
        meant = near(kind, KINDS)
        raise PolicysmithError(
            f"`{kind}` of `-s {path}` is no range; {f'did you mean `{meant}`?' if meant else 'there are ' + ', '.join(KINDS)}"
        )
    try:
        low, high = float(inner[0]), float(inner[1])
        points = int(inner[2]) if len(inner) > 2 else None
        valid = len(inner) <= 3 and -math.inf < low < high < math.inf and (points is None or points > 0)
    except (ValueError, IndexError):
        valid = False
    if not valid:
        raise PolicysmithError(
            f"`{values}` of `-s {path}` must be two numbers, the smaller first, and for a grid a number of points: `{kind}(1,8)`"
        )
    one = Range(path, (), next(each for each in KINDS if each == kind), low, high, points)
    if one.is_log and low <= 0:
        raise PolicysmithError(f"`{values}` of `-s {path}` must begin above 0 to be logarithmic")
    return one


def _choices(path: str, values: str) -> tuple[Any, ...]:
    found = parse(f"values: [{values}]\n", f"-s {path}").value["values"]
    if not found or len({json.dumps(each, sort_keys=True) for each in found}) < len(found):
        raise PolicysmithError(f"`-s {path}={values}` needs values that differ")
    return tuple(found)


def grid(ranges: Sequence[Range]) -> list[Values]:
    """Return all combinations of the values of a grid."""
    paths = [one.path for one in ranges]
    return [
        dict(zip(paths, values, strict=True)) for values in itertools.product(*(one.grid() for one in ranges))
    ]


def drawn(ranges: Sequence[Range], seed: int, number: int) -> Values:
    """Return the random values of a trial; they depend on the seed and its number alone."""
    generator = random.Random(f"{seed} {number}")
    return {one.path: one.draw(generator) for one in ranges}


def overrides(values: Values) -> Iterator[str]:
    """Yield values as overrides `path=value`; JSON is YAML."""
    for path, value in values.items():
        yield f"{path}={json.dumps(value)}"
