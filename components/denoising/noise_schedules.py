"""Schedules of the noise in diffusion heads.

At step t = 0, ..., N - 1 a noisy action is x_t = sqrt(a_t) action + sqrt(1 - a_t) noise, with a_t the product
of 1 - beta_i for i <= t.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.part import Section

Beta = Annotated[float, Field(gt=0.0, lt=1.0)]


class Cosine(Section):
    """beta_t = min(1 - f((t + 1) / N) / f(t / N), max_beta),  f(u) = cos^2((u + 0.008) / 1.008 * pi / 2).

    The schedule of improved DDPM (Nichol & Dhariwal, 2021) and Diffusion Policy (Chi et al., 2023).
    """

    type: Literal["squaredcos_cap_v2"]
    """Squared cosine, capped."""
    max_beta: Beta = 0.999
    """Cap of the noise that one step adds."""

    def betas(self, count: int, device: torch.device | str) -> Tensor:
        """Return beta_t (N,), float64."""
        share = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64, device=device)
        left = torch.cos((share + 0.008) / 1.008 * math.pi / 2.0) ** 2
        return (1.0 - left[1:] / left[:-1]).clamp_max(self.max_beta)


class Linear(Section):
    """beta_t from `start` to `end` in equal steps (Ho et al., 2020)."""

    type: Literal["linear"]
    """Noise that grows linearly."""
    start: Beta = 0.0001
    """Noise that the first step adds."""
    end: Beta = 0.02
    """Noise that the last step adds."""

    def betas(self, count: int, device: torch.device | str) -> Tensor:
        """Return beta_t (N,), float64."""
        return torch.linspace(self.start, self.end, count, dtype=torch.float64, device=device)


class ScaledLinear(Section):
    """sqrt(beta_t) from sqrt(start) to sqrt(end) in equal steps (latent diffusion; Rombach et al., 2022)."""

    type: Literal["scaled_linear"]
    """Noise whose root grows linearly."""
    start: Beta = 0.0001
    """Noise that the first step adds."""
    end: Beta = 0.02
    """Noise that the last step adds."""

    def betas(self, count: int, device: torch.device | str) -> Tensor:
        """Return beta_t (N,), float64."""
        bounds = (self.start**0.5, self.end**0.5)
        return torch.linspace(*bounds, count, dtype=torch.float64, device=device) ** 2


NoiseSchedule = Annotated[Cosine | Linear | ScaledLinear, Field(discriminator="type")]


def signal_shares(
    schedule: Cosine | Linear | ScaledLinear, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a_t (N,) of all steps, float64."""
    return torch.cumprod(1.0 - schedule.betas(count, device), dim=0)
