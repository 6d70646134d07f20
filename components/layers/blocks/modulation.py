"""Norms with shift and scale from a condition, and the preceding gated branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels.dispatch import uses_kernel
from ...kernels.modulated_norm import modulated_norm, reference


def modulated(
    norm: nn.LayerNorm,
    residual: Tensor,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `hidden = residual + gate * branch` and `norm(hidden) * (1 + scale) + shift`, both (B, N, D).

    residual and branch are (B, N, D); gate, shift and scale are (B, D), (B, N, D), or None to omit them.
    """
    shared = all(each is None or each.ndim == 2 for each in (gate, shift, scale))
    compute = modulated_norm if shared and uses_kernel(residual) else reference
    return compute(residual, branch, gate, shift, scale, norm.weight, norm.bias, eps=norm.eps)


def with_features(condition: Tensor, count: int) -> Tensor:
    """Return the condition of `count` tokens of features and the H steps behind them.

    A condition (B, C) is that of all tokens. Of one for each step (B, H, C), features take the last.
    """
    if condition.ndim == 2 or not count:
        return condition
    return torch.cat([condition[:, -1:].expand(-1, count, -1), condition], dim=1)
