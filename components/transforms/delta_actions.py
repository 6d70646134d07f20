"""Actions as steps from one to the next."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..vectors.relative import DifferenceConfig, DifferenceTransform


class DeltaActions(DifferenceTransform):
    """Tells every action of a chunk as its distance from the one before, and the first as that from the state.

        a'_1 = a_1 - s,  a'_t = a_t - a_(t-1)        a_t = s + a'_1 + ... + a'_t

    For actions that are positions, in the units of the state. Errors of a prediction add up along the chunk; those
    of `relative_actions` do not. A `normalize` that follows uses the statistics of the steps.
    """

    class Config(DifferenceConfig):
        """Actions as steps from one to the next."""

        type: Literal["delta_actions"]
        """Predict the step from each action to the next, beginning at the state."""

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="delta_actions", absolute=[-1])

    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Actions (B, H, A) and states (B, S) -> steps (B, H, A)."""
        before = torch.cat([self.start(state)[:, None], actions[:, :-1]], dim=1)
        return self.choose(actions - before, actions)

    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Steps (B, H, A) and states (B, S) -> actions (B, H, A)."""
        return self.choose(self.start(state)[:, None] + actions.cumsum(1), actions)
