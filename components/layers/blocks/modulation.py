"""Norms with shift and scale from a condition, and the preceding gated branch."""

from __future__ import annotations

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

    residual and branch are (B, N, D); gate, shift and scale are (B, D), or None to omit them.
    """
    compute = modulated_norm if uses_kernel(residual) else reference
    return compute(residual, branch, gate, shift, scale, norm.weight, norm.bias, eps=norm.eps)
