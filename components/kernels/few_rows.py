"""Products of few rows with wide weights, as of a chunk's tokens at batch 1, without gradients.

    parts = x weight^T, in shares of the inner dimension          sum of parts = product
    gated = act(x gate^T) * (x up^T)
    hidden = residual + gate * (sum of parts + bias)     out = norm(hidden) * weight * (1 + scale) + shift

The time of such a product is that of reading its weights, which needs more programs than it has tiles of output:
shares of the inner dimension run beside each other, and the norm behind the product adds them up.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import operator, uses_kernel
from .modulated_norm import reference as norm_reference

ROWS = 64
"""The most rows that the programs support."""
Activation = Literal["gelu_tanh", "silu"]
OptionalTensor = Tensor | None


def serves(values: Tensor) -> bool:
    """Return whether the kernels are the faster choice for values (..., D): few rows in half precision on a GPU."""
    half = values.dtype in (torch.bfloat16, torch.float16)
    few = values.numel() <= ROWS * values.shape[-1]
    return half and few and not torch.is_grad_enabled() and uses_kernel(values)


def linear(values: Tensor, weight: Tensor) -> Tensor:
    """Return values (B, N, K) times weight (D, K), (B, N, D).

    Raises:
        ValueError: More than `ROWS` rows, or unfit shapes or dtypes.
    """
    _check(values, weight)
    out: Tensor = _linear(values, weight)
    return out


def linear_parts(values: Tensor, weight: Tensor) -> Tensor:
    """Return values (B, N, K) times weight (D, K) as shares (P, B, N, D), float32, whose sum is the product.

    Raises:
        ValueError: More than `ROWS` rows, or unfit shapes or dtypes.
    """
    _check(values, weight)
    out: Tensor = _parts(values, weight)
    return out


def gated_linear(values: Tensor, both: Tensor, activation: Activation) -> Tensor:
    """Return act(gate) * up (B, N, D) of values (B, N, K) and the weights of gate and up, `both` (2 * D, K).

    Raises:
        ValueError: More than `ROWS` rows, or unfit shapes or dtypes.
    """
    _check(values, both)
    if len(both) % 2:
        raise ValueError(f"gate and up cannot share a weight of shape {tuple(both.shape)}")
    out: Tensor = _gated(values, both, activation == "silu")
    return out


def summed_norm(
    residual: Tensor,
    parts: Tensor,
    bias: OptionalTensor = None,
    gate: OptionalTensor = None,
    shift: OptionalTensor = None,
    scale: OptionalTensor = None,
    weight: OptionalTensor = None,
    *,
    rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return `hidden` and `out` (B, N, D), in the dtype of the residual.

    Args:
        residual: (B, N, D).
        parts: (P, B, N, D), the result of `linear_parts`.
        bias: (D,) of the product.
        gate: (B, D), as are shift and scale.
        shift: (B, D).
        scale: (B, D).
        weight: (D,) of the norm.
        rms: Divide by the root mean square alone.
        eps: Least variance.

    Raises:
        ValueError: Unfit shapes.
    """
    batch, _, width = residual.shape
    vectors = gate, shift, scale
    if parts.shape[1:] != residual.shape or any(x is not None and x.shape != (batch, width) for x in vectors):
        raise ValueError(f"parts {tuple(parts.shape)} do not fit a residual of {tuple(residual.shape)}")
    hidden, out = _norm(residual, parts, bias, gate, shift, scale, weight, rms, eps)
    return hidden, out


def _check(values: Tensor, weight: Tensor) -> None:
    rows = values.numel() // values.shape[-1]
    if rows > ROWS or values.shape[-1:] != weight.shape[1:] or values.dtype != weight.dtype:
        raise ValueError(
            f"made for up to {ROWS} rows and one dtype, not {values.dtype} {tuple(values.shape)} "
            f"and {weight.dtype} {tuple(weight.shape)}"
        )


def _parts_reference(values: Tensor, weight: Tensor) -> Tensor:
    precise = torch.promote_types(values.dtype, torch.float32)
    size = INNER * tiles_of_share(weight)
    pairs = zip(values.to(precise).split(size, -1), weight.to(precise).split(size, -1), strict=True)
    return torch.stack([F.linear(x, w) for x, w in pairs])


def _linear_reference(values: Tensor, weight: Tensor) -> Tensor:
    return F.linear(values, weight)


def _gated_reference(values: Tensor, both: Tensor, silu: bool) -> Tensor:
    gate, up = F.linear(values, both).chunk(2, dim=-1)
    return (F.silu(gate) if silu else F.gelu(gate, approximate="tanh")) * up


def _norm_reference(
    residual: Tensor, parts: Tensor, bias: OptionalTensor, gate: OptionalTensor, shift: OptionalTensor,
    scale: OptionalTensor, weight: OptionalTensor, rms: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    branch = parts.sum(0)
    branch = branch if bias is None else branch + bias.to(branch.dtype)
    given = (None if x is None else x.to(branch.dtype) for x in (gate, shift, scale, weight))
    hidden, out = norm_reference(
        residual.to(branch.dtype), branch, *given, norm="rms" if rms else "layer", eps=eps
    )
    return hidden.to(residual.dtype), out.to(residual.dtype)


def tiles_of_share(weight: Tensor) -> int:
    """Return how many tiles of the inner dimension of a product with weight (D, K) one program goes through."""
    columns, inner = weight.shape
    tiles = -(-inner // INNER)
    return -(-tiles // max(1, min(tiles, PROGRAMS // -(-columns // COLUMNS))))


PROGRAMS, COLUMNS, INNER = 144, 32, 128
"""Programs that fill a GPU, and the tile of a weight that each reads at a time."""

_linear = operator("few_rows", "linear", "(Tensor values, Tensor weight) -> Tensor", _linear_reference)
_parts = operator("few_rows", "parts", "(Tensor values, Tensor weight) -> Tensor", _parts_reference)
_gated = operator("few_rows", "gated", "(Tensor values, Tensor both, bool silu) -> Tensor", _gated_reference)
_norm = operator(
    "few_rows",
    "norm",
    "(Tensor residual, Tensor parts, Tensor? bias, Tensor? gate, Tensor? shift, Tensor? scale, Tensor? weight, "
    "bool rms, float eps) -> (Tensor, Tensor)",
    _norm_reference,
)


@_linear.register_fake
def _(values: Tensor, weight: Tensor) -> Tensor:
    return values.new_empty(*values.shape[:-1], len(weight))


@_parts.register_fake
def _(values: Tensor, weight: Tensor) -> Tensor:
    precise = torch.promote_types(values.dtype, torch.float32)
    shares = -(-weight.shape[1] // (INNER * tiles_of_share(weight)))
    return values.new_empty(shares, *values.shape[:-1], len(weight), dtype=precise)


@_gated.register_fake
def _(values: Tensor, both: Tensor, silu: bool) -> Tensor:
    return values.new_empty(*values.shape[:-1], len(both) // 2)


@_norm.register_fake
def _(
    residual: Tensor, parts: Tensor, bias: OptionalTensor, gate: OptionalTensor, shift: OptionalTensor,
    scale: OptionalTensor, weight: OptionalTensor, rms: bool, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return residual.new_empty(residual.shape), residual.new_empty(residual.shape)


__all__ = ["gated_linear", "linear", "linear_parts", "serves", "summed_norm"]
