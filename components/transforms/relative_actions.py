from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..vectors.relative import DifferenceConfig, DifferenceTransform


class RelativeActions(DifferenceTransform):
    """Actions as differences from the state at the start of the chunk (pi0, GR00T, UMI).

        a'_t = a_t - s        a_t = a'_t + s

    For actions that are joint angles or positions, in the units of the state. Differences are taken number by
    number, which is not a rotation for rotations; use `relative_pose` for those. A later `normalize` uses the
    statistics of the relative actions.
    """

    class Config(DifferenceConfig):
        type: Literal["relative_actions"]

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="relative_actions", absolute=[-1])

    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (B, H, A) relative to states (B, S)."""
        return actions - self.start(state)[:, None]

    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (B, H, A) for relative ones (B, H, A) and states (B, S)."""
        return actions + self.start(state)[:, None]
