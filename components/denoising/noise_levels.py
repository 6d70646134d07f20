"""Distributions of the noise level in the training of flow-matching heads.

The level s is 1 for pure noise and 0 for the action, independent of the direction of time.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import Beta

from ...schemas.part import Section

Positive = Annotated[float, Field(gt=0.0)]


class BetaLevels(Section):
    """s = floor + (1 - floor) u,  u ~ Beta(alpha, beta).

    With alpha = 1.5, beta = 1 and floor = 0.001 it is the distribution of pi0 (Black et al., 2024) and of
    GR00T N1.7, in which high levels, at which the action is hardly visible, are more frequent. With alpha =
    beta = 2 and floor = 0 it is that of EVO-1.
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
        """Return random levels (count,), float32."""
        return self.floor + (1.0 - self.floor) * _beta(self.alpha, self.beta, count, device)


class UniformLevels(Section):
    """s = u,  u ~ U(0, 1)."""

    type: Literal["uniform"]
    """Uniform distribution."""

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return random levels (count,), float32."""
        return torch.rand(count, device=device)


class GrootN1Levels(Section):
    """s = u / 0.999,  u ~ Beta(1.5, 1): the distribution of GR00T N1 and N1.5 (Bjorck et al., 2025).

    In 0.15 % of draws s exceeds 1, by at most 0.001: a time below 0, with more noise than in sampling.
    """

    type: Literal["groot_n1"]
    """Distribution of GR00T N1."""
    clamp: bool = False
    """Limit levels to 1, as in starVLA: s = min(u, 0.999) / 0.999."""

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return random levels (count,), float32."""
        levels = _beta(1.5, 1.0, count, device) / 0.999
        return levels.clamp_max(1.0) if self.clamp else levels


class LogitNormalLevels(Section):
    """s = 1 / (1 + exp(-n)),  n ~ N(mean, std), as in Stable Diffusion 3 (Esser et al., 2024)."""

    type: Literal["logit_normal"]
    """Logit-normal distribution."""
    mean: float = 0.0
    """Mean of n; above 0, high levels are more frequent."""
    std: Positive = 1.0
    """Standard deviation of n; a small one concentrates levels in the middle."""

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return random levels (count,), float32."""
        return torch.sigmoid(self.mean + self.std * torch.randn(count, device=device))


class StratifiedLevels(Section):
    """s_i = (u + k_i / B) mod (1 - 1e-5),  u ~ U(0, 1),  k a permutation of 0 .. B - 1, as in X-VLA.

    Uniform, but with evenly spaced levels in a batch, so that its loss varies less (Zheng et al., 2025).
    """

    type: Literal["stratified"]
    """Uniform distribution, evenly spaced in every batch."""

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return random levels (count,), float32, in random order, so that repeats of a sample differ."""
        spaced = torch.randperm(count, device=device) / count
        return (torch.rand((), device=device) + spaced) % (1.0 - 1e-5)


NoiseLevels = Annotated[
    BetaLevels | GrootN1Levels | UniformLevels | LogitNormalLevels | StratifiedLevels,
    Field(discriminator="type"),
]


def _beta(alpha: float, beta: float, count: int, device: torch.device) -> Tensor:
    if device.type == "meta":  # Beta has no kernel there, and values are irrelevant
        return torch.rand(count, device=device)
    first, second = (torch.full((count,), value, device=device) for value in (alpha, beta))
    return Beta(first, second, validate_args=False).sample()
