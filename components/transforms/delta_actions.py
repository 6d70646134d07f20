from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..vectors.relative import DifferenceConfig, DifferenceTransform


class DeltaActions(DifferenceTransform):
    """Actions as differences between consecutive steps, the first from the state.

        a'_1 = a_1 - s,  a'_t = a_t - a_(t-1)        a_t = s + a'_1 + ... + a'_t

    For actions that are positions, in the units of the state. Prediction errors accumulate along the chunk,
    unlike those of `relative_actions`. A later `normalize` uses the statistics of the differences.
    """

    class Config(DifferenceConfig):
        type: Literal["delta_actions"]

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="delta_actions", absolute=[-1])

    def rewrite(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return differences (B, H, A) of actions (B, H, A) and states (B, S)."""
        before = torch.cat([self.start(state)[:, None], actions[:, :-1]], dim=1)
        return self.choose(actions - before, actions)

    def restore(self, actions: Tensor, state: Tensor) -> Tensor:
        """Return actions (B, H, A) for differences (B, H, A) and states (B, S)."""
        return self.choose(self.start(state)[:, None] + actions.cumsum(1), actions)
