"""Names, order and rate of a robot's states and actions, for comparing data, policies and environments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .lerobot.info import DatasetInfo

_RATE_TOLERANCE = 0.01  # 29.97 and 30 frames per second are the same rate


@dataclass(frozen=True)
class Signals:
    """Rate in steps per second, and one name for each dimension, by key; None or absent if unknown."""

    fps: float | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, info: DatasetInfo) -> Signals:
        """Return the signals of a dataset."""
        return cls(info.fps, info.names)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Signals:
        """Return the signals in a `config.json`; empty for a policy saved without."""
        held = value or {}
        return cls(held.get("fps"), {key: tuple(names) for key, names in (held.get("names") or {}).items()})

    @classmethod
    def of_policy(cls, content: Mapping[str, Any], embodiment: str | None = None) -> Signals:
        """Return the signals of a policy's training data, or of one of its robots."""
        held = content.get("signals")
        return cls.from_json((held or {}).get(embodiment) if content.get("robots") else held)

    def to_json(self) -> dict[str, Any]:
        """Return the signals as `config.json` holds them."""
        return {"fps": self.fps, "names": {key: list(names) for key, names in self.names.items()}}

    def __bool__(self) -> bool:
        return self.fps is not None or bool(self.names)

    def other_rate(self, other: Signals) -> bool:
        """Return whether both rates are known and differ."""
        if self.fps is None or other.fps is None:
            return False
        return abs(self.fps - other.fps) > _RATE_TOLERANCE * max(self.fps, other.fps)

    def pairs(self, other: Signals) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Yield key, own names and other names of every key whose names are known on both sides and differ."""
        for key, own in self.names.items():
            names = other.names.get(key)
            if names is not None and names != own and not (_numbered(own, names) or _numbered(names, own)):
                yield key, own, names


def order(given: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the index of each wanted name among the given ones, or None if the names differ."""
    if sorted(given) != sorted(wanted) or len(set(given)) < len(given):
        return None
    return [list(given).index(name) for name in wanted]


def listed(names: Sequence[str]) -> str:
    """Return names for a message, truncated after twelve."""
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"({', '.join(names[:12])}{more})"


def _numbered(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether names only number the dimensions, such as `motor_0, motor_1`."""
    found = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    if not all(found) or set(names) & set(others):
        return False
    parts = [(match[1], int(match[2])) for match in found if match is not None]
    return parts == [(parts[0][0], parts[0][1] + step) for step in range(len(parts))]


__all__ = ["Signals", "listed", "order"]
