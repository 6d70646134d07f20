"""Time steps of a sample, relative to its frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class TimeSteps:
    """Time steps of the observations and of the actions; 0 is the frame itself, negative steps lie before it."""

    observations: Sequence[int]
    actions: Sequence[int]

    @classmethod
    def of(cls, *, horizon: int, observation_steps: int, past_actions: int = 0) -> Self:
        """Return the time steps of a chunk of `horizon` actions, the first `past_actions` of which lie before now."""
        return cls(range(1 - observation_steps, 1), range(-past_actions, horizon - past_actions))

    @property
    def past_actions(self) -> int:
        """Number of actions before now."""
        return sum(step < 0 for step in self.actions)


__all__ = ["TimeSteps"]
