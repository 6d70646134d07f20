"""How much noise a flow-matching head sees in training: named distributions of the noise level, each with its formula.

The level s is 1 for pure noise and 0 for the action, whichever way a policy counts time.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Beta

from ..schemas.part import Section

Positive = Annotated[float, Field(gt=0.0)]


class BetaLevels(Section):
    """s = floor + (1 - floor) u,  u ~ Beta(alpha, beta).

    With alpha = 1.5, beta = 1 and floor = 0.001 it is that of pi0 (Black et al., 2024) and of GR00T N1.7: high levels,
    where the action is hardly known, are drawn more often.
    """

    type: Literal["beta"]
    """Beta distribution."""
    alpha: Positive = 1.5
    """First parameter of the Beta distribution."""
    beta: Positive = 1.0
    """Second parameter of the Beta distribution."""
    floor: float = Field(default=0.001, ge=0.0, lt=1.0)
    """Smallest level."""

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Levels (count,), float32."""
        return self.floor + (1.0 - self.floor) * _beta(self.alpha, self.beta, count, device)


class UniformLevels(Section):
    """s = u,  u ~ U(0, 1)."""

    type: Literal["uniform"]
    """Uniform distribution."""

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Levels (count,), float32."""
        return torch.rand(count, device=device)


NoiseLevels = Annotated[BetaLevels | UniformLevels, Field(discriminator="type")]


def _beta(alpha: float, beta: float, count: int, device: torch.device) -> Tensor:
    if device.type == "meta":  # Beta has no kernel there, and values do not matter
        return torch.rand(count, device=device)
    first, second = (torch.full((count,), value, device=device) for value in (alpha, beta))
    return Beta(first, second, validate_args=False).sample()
