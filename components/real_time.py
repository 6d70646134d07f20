"""Real-time chunking (Black, Galliker & Levine, 2025): a new chunk that continues the running one.

While a chunk is predicted, the robot runs the next actions of the old one. A new chunk that ignores them jumps. Guided
inpainting pulls each denoising step towards them: fully for those that will have run, less and less for later ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Actions of the running chunk, aligned with the new one.

    Attributes:
        actions: Actions (B, H, A), of any value where the weight is 0.
        weights: Weights (B, H) in [0, 1].
        strength: Largest weight of the guidance against the velocity, beta in the paper.
    """

    actions: Tensor
    weights: Tensor
    strength: float = 5.0


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


def guided_slope(slope_at: Callable[[Tensor], Tensor], chunk: Tensor, level: float, prefix: Prefix) -> Tensor:
    """Return dx/ds (B, H, A) of a chunk at noise level s, guided towards a prefix (equations 2 to 4).

    With t = 1 - s, the action that a chunk x is headed for is `a = x - s dx/ds`. Its weighted error to the prefix is
    pulled back to x through the network, and added to the velocity dx/dt with the weight

        min(strength, (1 - t) / (t r^2)),    r^2 = (1 - t)^2 / (t^2 + (1 - t)^2)
    """
    with torch.enable_grad():
        start = chunk.detach().requires_grad_()
        slope = slope_at(start)
        action = start - level * slope
        error = (prefix.actions - action.detach()) * prefix.weights[..., None]
        (pull,) = torch.autograd.grad(action, start, error)
    time = 1.0 - level
    weight = prefix.strength
    if time > 0.0:
        weight = min(weight, (time**2 + level**2) / (time * level))
    return slope.detach() - weight * pull


__all__ = ["Prefix", "guided_slope", "soft_mask"]
