"""Random numbers from a generator on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return standard normal numbers of the shape and device of `like`, float32."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like.device)


def categorical(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return indices (...) drawn by softmax(scores) of the last dim, by the Gumbel-max trick."""
    device = scores.device if generator is None else generator.device
    uniform = torch.rand(scores.shape, generator=generator, device=device).to(scores.device)
    return (scores - (-uniform.clamp_min(1e-20).log()).log()).argmax(-1)
