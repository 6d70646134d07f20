"""Actions relative to the state."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..vectors.relative import DifferenceConfig, DifferenceTransform


class RelativeActions(DifferenceTransform):
    """Tells every action of a chunk as its distance from the state at the chunk's begin (pi0, GR00T, UMI).

        a'_t = a_t - s        a_t = a'_t + s

    For actions that are joint angles or positions, in the units of the state. Differences are taken number by number,
    which is no rotation for rotations: see `relative_pose`. A `normalize` that follows uses the statistics of the
    relative actions.
    """

    class Config(DifferenceConfig):
        """Actions relative to the state."""

        type: Literal["relative_actions"]
        """Predict actions relative to the state at the begin of the chunk."""

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="relative_actions", absolute=[-1])

    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Actions (B, H, A) and states (B, S) -> (B, H, A)."""
        return actions - self.start(state)[:, None]

    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Relative actions (B, H, A) and states (B, S) -> (B, H, A)."""
        return actions + self.start(state)[:, None]
