"""Norms that a condition shifts and scales, with the gated branch that comes before them."""

from __future__ import annotations

from torch import Tensor, nn

from ..kernels.dispatch import fused
from ..kernels.modulated_norm import modulated_norm, reference


def modulated(
    norm: nn.LayerNorm,
    residual: Tensor,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`hidden = residual + gate * branch` and `norm(hidden) * (1 + scale) + shift`, both (B, N, D).

    residual and branch (B, N, D); gate, shift and scale (B, D). What is None is left out.
    """
    compute = modulated_norm if fused(residual) else reference
    return compute(residual, branch, gate, shift, scale, norm.weight, norm.bias, eps=norm.eps)
