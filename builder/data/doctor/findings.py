"""Findings of an examination of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """Severity of a finding, in the order of the report."""

    ERROR = 0
    """It cannot be read as the metadata says."""
    WARNING = 1
    """It reads well, and a policy is likely to learn something wrong from it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        kind: Name of the check.
        text: Place and problem, then the cure, as one sentence.
        episodes: Episodes concerned; empty for the whole dataset.
    """

    severity: Severity
    kind: str
    text: str
    episodes: tuple[int, ...] = ()


def listed(episodes: Sequence[int], most: int = 8) -> str:
    """Return `episode 3`, or `12 episodes (0, 3, 5, ...)`."""
    if len(episodes) == 1:
        return f"episode {episodes[0]}"
    shown = ", ".join(map(str, episodes[:most])) + (", ..." if len(episodes) > most else "")
    return f"{len(episodes)} episodes ({shown})"
