"""Real-time chunking: a new chunk that continues the running one.

While a chunk is predicted, the robot runs the next actions of the old one. A new chunk that ignores them jumps. There are two
ways to tell a denoising head of them:

- Guidance (Black, Galliker & Levine, 2025) pulls each step of sampling towards them: fully for those that will have run, less
  and less for later ones. It needs no training.
- A head that was trained with `delay` (Black et al., "Training-Time Action Conditioning for Efficient Real-Time Chunking",
  2025) takes those that will have run as given, and predicts the rest. It costs nothing in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schemas.part import Count, Section


class Delay(Section):
    """Training for real-time chunking: the first d steps of each chunk are given, d drawn evenly from 0 to `max`."""

    max: Count
    """Most steps that are given: those that the robot runs while it thinks."""


@dataclass(frozen=True)
class Continuation:
    """Method of continuing a running chunk."""

    max_delay: int | None = None
    """Most steps of a prefix that it was trained to be given; None for guidance."""


@dataclass(frozen=True)
class Prefix:
    """Actions of the running chunk, aligned with the new one.

    Attributes:
        actions: Actions (B, H, A), of any value where the weight is 0.
        weights: Weights (B, H) in [0, 1]; 1 for those that will have run.
        strength: Largest weight of the guidance against the velocity, beta in the paper.
    """

    actions: Tensor
    weights: Tensor
    strength: float = 5.0

    @classmethod
    def joined(cls, prefixes: Sequence[Prefix]) -> Prefix:
        """Return the prefixes of several batches as that of one."""
        actions, weights = ([getattr(each, name) for each in prefixes] for name in ("actions", "weights"))
        return cls(torch.cat(actions), torch.cat(weights), prefixes[0].strength)


def soft_mask(horizon: int, delay: int, remaining: int) -> Tensor:
    """Return the weights (H,) of a running chunk of which `remaining` actions are left (equation 5).

    The first `delay` weigh 1, because they run before the new chunk is there. From there on the weights fall
    exponentially to the end of the running chunk, beyond which they are 0.
    """
    weights = torch.zeros(horizon)
    remaining = min(remaining, horizon)
    for index in range(remaining):
        left = 1.0 if index < delay else (remaining - index) / (remaining - delay + 1)
        weights[index] = 1.0 if index < delay else left * math.expm1(left) / math.expm1(1.0)
    return weights


def pull_to(
    predict: Callable[[Tensor], tuple[Tensor, Tensor]], chunk: Tensor, prefix: Prefix
) -> tuple[Tensor, Tensor]:
    """Return what `predict` finds in a chunk (B, H, A), and the pull of the prefix on the chunk.

    `predict` returns the action that the chunk is headed for, and any other tensor, which is passed on. The pull
    is the weighted error of that action to the prefix, pulled back to the chunk through the network (equation 2).
    """
    with torch.enable_grad():
        start = chunk.detach().requires_grad_()
        action, other = predict(start)
        error = (prefix.actions - action.detach()) * prefix.weights[..., None]
        (pull,) = torch.autograd.grad(action, start, error)
    return other.detach(), pull


def guidance_weight(signal: float, noise: float, strength: float) -> float:
    """Return the weight of the pull on a chunk x = signal * action + noise * eps (equations 2 and 4).

    In the paper signal + noise = 1. The weight is the same for any multiple of a chunk:

        min(strength, noise / (signal r^2)),    r^2 = noise^2 / (signal^2 + noise^2)
    """
    return min(strength, (signal**2 + noise**2) / (signal * noise)) if signal * noise > 0.0 else strength


def guided_slope(slope_at: Callable[[Tensor], Tensor], chunk: Tensor, level: float, prefix: Prefix) -> Tensor:
    """Return dx/ds (B, H, A) of a chunk at noise level s, guided towards a prefix.

    The action that a chunk x is headed for is `a = x - s dx/ds`.
    """

    def predict(start: Tensor) -> tuple[Tensor, Tensor]:
        slope = slope_at(start)
        return start - level * slope, slope

    slope, pull = pull_to(predict, chunk, prefix)
    return slope - guidance_weight(1.0 - level, level, prefix.strength) * pull


__all__ = [
    "Continuation",
    "Delay",
    "Prefix",
    "guidance_weight",
    "guided_slope",
    "pull_to",
    "soft_mask",
]
