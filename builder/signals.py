"""Names, order and rate of a robot's numbers, compared wherever two sides meet: data, policies, environments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .data.lerobot.info import DatasetInfo

_SAME_RATE = 0.01  # 29.97 and 30 frames per second are one rate


@dataclass(frozen=True)
class Signals:
    """`names` has one name a dimension, by key, where they are known; `fps` is in steps per second, None if unknown."""

    fps: float | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, info: DatasetInfo) -> Signals:
        """Signals of a dataset."""
        return cls(info.fps, info.names)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Signals:
        """Signals as `config.json` holds them; none for a policy saved without."""
        held = value or {}
        return cls(held.get("fps"), {key: tuple(names) for key, names in (held.get("names") or {}).items()})

    @classmethod
    def of_policy(cls, content: Mapping[str, Any], embodiment: str | None = None) -> Signals:
        """Signals of the data that a policy was trained on, or of the one of several robots."""
        held = content.get("signals")
        return cls.from_json((held or {}).get(embodiment) if content.get("robots") else held)

    def to_json(self) -> dict[str, Any]:
        return {"fps": self.fps, "names": {key: list(names) for key, names in self.names.items()}}

    def __bool__(self) -> bool:
        return self.fps is not None or bool(self.names)

    def other_rate(self, other: Signals) -> bool:
        """Return True where both rates are known and differ."""
        if self.fps is None or other.fps is None:
            return False
        return abs(self.fps - other.fps) > _SAME_RATE * max(self.fps, other.fps)

    def pairs(self, other: Signals) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Key, own names and the other side's names, where both are known and differ."""
        for key, own in self.names.items():
            names = other.names.get(key)
            if names is not None and names != own and not (_numbered(own, names) or _numbered(names, own)):
                yield key, own, names


def order(given: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Places of the `wanted` names among the `given` ones; None where they are not the same names."""
    if sorted(given) != sorted(wanted) or len(set(given)) < len(given):
        return None
    return [list(given).index(name) for name in wanted]


def listed(names: Sequence[str]) -> str:
    """Names for a message, cut short where they are many."""
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"({', '.join(names[:12])}{more})"


def _numbered(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return True for names that only number the dimensions, such as `motor_0, motor_1`."""
    found = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    if not all(found) or set(names) & set(others):
        return False
    parts = [(match[1], int(match[2])) for match in found if match is not None]
    return parts == [(parts[0][0], parts[0][1] + step) for step in range(len(parts))]


__all__ = ["Signals", "listed", "order"]
