"""Bias, GELU and dropout in one pass, as between the two linear layers of a feed-forward network.

    out = dropout(gelu(values + bias))

GELU (Hendrycks & Gimpel, 2016) is exact or its tanh approximation. The backward pass sums the gradient of the
bias while it computes that of the values, and draws the mask of dropout (Srivastava et al., 2014) again from
its seed by Philox, instead of storing it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import operator
from .philox import philox

LEVELS = 1 << 16
"""Resolution of dropout: sixteen random bits decide about a value, and eight values share four words."""


def gelu(
    values: Tensor, bias: Tensor, seed: Tensor | None = None, *, tanh: bool = False, dropout: float = 0.0
) -> Tensor:
    """Map values (..., D) and bias (D,) to (..., D), in the dtype of the values.

    `dropout`, from 0 to below 1, is the share of dropped values. It requires a seed, int64 (1,); equal seeds
    drop the same values.

    Raises:
        ValueError: Dropout without a seed, or a bias of another shape.
    """
    if bias.shape != values.shape[-1:]:
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for values of shape {tuple(values.shape)}")
    if dropout > 0.0 and seed is None:
        raise ValueError("dropout needs a seed")
    out: Tensor = _forward(values, bias, seed, tanh, threshold(dropout))
    return out


def threshold(dropout: float) -> int:
    """Return the number of the `LEVELS` random numbers that drop a value; not all."""
    return min(round(dropout * LEVELS), LEVELS - 1)


def reference(
    values: Tensor, bias: Tensor, seed: Tensor | None = None, *, tanh: bool = False, dropout: float = 0.0
) -> Tensor:
    """Compute `gelu` in plain torch."""
    out = F.gelu(values + bias.to(values.dtype), approximate="tanh" if tanh else "none")
    if seed is None or not threshold(dropout):
        return out
    return out * dropout_factors(out, seed, threshold(dropout))


def dropout_factors(values: Tensor, seed: Tensor, dropped: int) -> Tensor:
    """Return the factor of each value (..., D): zero for dropped values, the compensation for others."""
    width = values.shape[-1]
    groups = -(-width // 8)
    counter = torch.arange(values.numel() // width * groups, device=values.device)
    zeros = torch.zeros_like(counter)
    words = philox(seed, (counter, zeros, zeros, zeros))  # (groups, 4)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).view(-1, groups * 8)[:, :width]
    return ((halves >= dropped).to(values.dtype) * (LEVELS / (LEVELS - dropped))).view_as(values)


def _forward_reference(values: Tensor, bias: Tensor, seed: Tensor | None, tanh: bool, dropped: int) -> Tensor:
    return reference(values, bias, seed, tanh=tanh, dropout=dropped / LEVELS).contiguous()


def _backward_reference(
    d_out: Tensor, values: Tensor, bias: Tensor, seed: Tensor | None, tanh: bool, dropped: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values and of the bias."""
    if seed is not None and dropped:
        d_out = d_out * dropout_factors(d_out, seed, dropped)
    precise = torch.promote_types(values.dtype, torch.float32)
    shifted = values.to(precise) + bias.to(precise)
    change = torch.ops.aten.gelu_backward(d_out.to(precise), shifted, approximate="tanh" if tanh else "none")
    total = change.reshape(-1, len(bias)).sum(0)
    return change.to(values.dtype).contiguous(), total.to(bias.dtype)


_forward = operator(
    "gelu",
    "forward",
    "(Tensor values, Tensor bias, Tensor? seed, bool tanh, int dropped) -> Tensor",
    _forward_reference,
)
_backward = operator(
    "gelu",
    "backward",
    "(Tensor d_out, Tensor values, Tensor bias, Tensor? seed, bool tanh, int dropped) -> (Tensor, Tensor)",
    _backward_reference,
)

OPERATOR = torch.ops.policysmith.gelu_forward.default


@_forward.register_fake
def _(values: Tensor, bias: Tensor, seed: Tensor | None, tanh: bool, dropped: int) -> Tensor:
    return values.new_empty(values.shape)


@_backward.register_fake
def _(
    d_out: Tensor, values: Tensor, bias: Tensor, seed: Tensor | None, tanh: bool, dropped: int
) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, bias, seed, ctx.tanh, ctx.dropped = inputs
    ctx.save_for_backward(values, bias, seed)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out, *ctx.saved_tensors, ctx.tanh, ctx.dropped), None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
