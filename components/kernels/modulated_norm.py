"""Gated residual, norm and modulation in one pass, as between two branches of a transformer with AdaLN.

    hidden = residual + gate * branch        out = norm(hidden) * (1 + scale) + shift

The norm is LayerNorm (Ba et al., 2016) or RMSNorm (Zhang & Sennrich, 2019), with or without weight and bias;
gate, scale and shift are those of adaLN-zero (Peebles & Xie, 2023), one vector per sample.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import operator

Norm = Literal["layer", "rms"]
OptionalTensor = Tensor | None


def modulated_norm(
    residual: Tensor,
    branch: OptionalTensor = None,
    gate: OptionalTensor = None,
    shift: OptionalTensor = None,
    scale: OptionalTensor = None,
    weight: OptionalTensor = None,
    bias: OptionalTensor = None,
    *,
    norm: Norm = "layer",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return `hidden` and `out` (B, N, D), in the dtype that residual and branch promote to.

    residual and branch are (B, N, D); gate, shift and scale (B, D), of one dtype; weight and bias (D,), of
    one dtype. Without a branch `hidden` is the residual. Raise ValueError for a gate without a branch.
    """
    if branch is None and gate is not None:
        raise ValueError("a gate needs a branch")
    hidden, out, _, _ = _forward(residual, branch, gate, shift, scale, weight, bias, norm == "rms", eps)
    return (residual if branch is None else hidden), out


def reference(
    residual: Tensor,
    branch: OptionalTensor = None,
    gate: OptionalTensor = None,
    shift: OptionalTensor = None,
    scale: OptionalTensor = None,
    weight: OptionalTensor = None,
    bias: OptionalTensor = None,
    *,
    norm: Norm = "layer",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Compute `modulated_norm` in plain torch; gate, shift and scale may also be (B, N, D)."""
    hidden = residual
    if branch is not None:
        hidden = residual + (branch if gate is None else per_token(gate) * branch)
    width = hidden.shape[-1:]
    if norm == "rms":
        out = F.rms_norm(hidden, width, weight, eps)
        out = out if bias is None else out + bias
    else:
        out = F.layer_norm(hidden, width, weight, bias, eps)
    out = out if scale is None else out * (1.0 + per_token(scale))
    out = out if shift is None else out + per_token(shift)
    return hidden, out.to(hidden.dtype)


def per_token(modulation: Tensor) -> Tensor:
    """Return a modulation (B, D) or (B, N, D) in a shape that broadcasts to tokens (B, N, D)."""
    return modulation if modulation.ndim == 3 else modulation[:, None]


def _forward_reference(
    residual: Tensor, branch: OptionalTensor, gate: OptionalTensor, shift: OptionalTensor, scale: OptionalTensor, weight: OptionalTensor, bias: OptionalTensor,
    rms: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return `hidden`, empty without a branch; `out`; `mean`, empty for RMSNorm, and `rstd` (B, N)."""
    norm: Norm = "rms" if rms else "layer"
    hidden, out = reference(residual, branch, gate, shift, scale, weight, bias, norm=norm, eps=eps)
    values = hidden.to(_sum_dtype(hidden))
    mean = values.new_empty(0) if rms else values.mean(-1)
    centered = values if rms else values - mean[..., None]
    rstd = (centered.square().mean(-1) + eps).rsqrt()
    return (residual.new_empty(0) if branch is None else hidden.clone()), out.clone(), mean, rstd


def _backward_reference(
    d_out: Tensor, d_hidden: OptionalTensor, hidden: Tensor, mean: Tensor, rstd: Tensor,
    branch: OptionalTensor, gate: OptionalTensor, shift: OptionalTensor, scale: OptionalTensor, weight: OptionalTensor, bias: OptionalTensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of all inputs.

    Returns:
        Gradients of the residual (B, N, D); of the branch if it is gated; of existing shift, scale and gate
            (K, B, D); of existing weight and bias (K, D).
    """
    dtype = _sum_dtype(hidden)
    d, values = d_out.to(dtype), hidden.to(dtype)
    normal = (values - mean[..., None] if mean.numel() else values) * rstd[..., None]
    affine = normal if weight is None else normal * weight.to(dtype)
    affine = affine if bias is None else affine + bias.to(dtype)
    modulation = [] if shift is None else [d.sum(1)]
    modulation += [] if scale is None else [(d * affine).sum(1)]
    d = d if scale is None else d * (1.0 + scale[:, None].to(dtype))
    parameters = [] if weight is None else [(d * normal).sum((0, 1))]
    parameters += [] if bias is None else [d.sum((0, 1))]
    d = d if weight is None else d * weight.to(dtype)
    change = d - normal * (d * normal).mean(-1, keepdim=True)
    change = (change - d.mean(-1, keepdim=True) if mean.numel() else change) * rstd[..., None]
    change = change if d_hidden is None else change + d_hidden.to(dtype)
    d_branch = hidden.new_empty(0)
    if gate is not None and branch is not None:
        modulation.append((change * branch.to(dtype)).sum(1))
        d_branch = (change * gate[:, None].to(dtype)).to(hidden.dtype)
    out = hidden.new_empty(0), hidden.new_empty(0)
    given = dtype_of(shift, scale, gate), dtype_of(weight, bias)
    sums = [
        torch.stack(found).to(kind) if found and kind else empty
        for found, kind, empty in zip((modulation, parameters), given, out, strict=True)
    ]
    return change.to(hidden.dtype), d_branch, sums[0], sums[1]


_forward = operator(
    "modulated_norm",
    "forward",
    "(Tensor residual, Tensor? branch, Tensor? gate, Tensor? shift, Tensor? scale, Tensor? weight, Tensor? bias, "
    "bool rms, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward_reference,
)
_backward = operator(
    "modulated_norm",
    "backward",
    "(Tensor d_out, Tensor? d_hidden, Tensor hidden, Tensor mean, Tensor rstd, Tensor? branch, Tensor? gate, "
    "Tensor? shift, Tensor? scale, Tensor? weight, Tensor? bias) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_reference,
)


@_forward.register_fake
def _(
    residual: Tensor, branch: OptionalTensor, gate: OptionalTensor, shift: OptionalTensor, scale: OptionalTensor, weight: OptionalTensor, bias: OptionalTensor,
    rms: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = residual.dtype if branch is None else torch.promote_types(residual.dtype, branch.dtype)
    out = torch.empty(residual.shape, dtype=dtype, device=residual.device)
    rows = torch.empty(residual.shape[:2], dtype=_sum_dtype(out), device=residual.device)
    hidden = residual.new_empty(0) if branch is None else torch.empty_like(out)
    return hidden, out, rows.new_empty(0) if rms else rows, torch.empty_like(rows)


@_backward.register_fake
def _(
    d_out: Tensor, d_hidden: OptionalTensor, hidden: Tensor, mean: Tensor, rstd: Tensor,
    branch: OptionalTensor, gate: OptionalTensor, shift: OptionalTensor, scale: OptionalTensor, weight: OptionalTensor, bias: OptionalTensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    change = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    nothing = hidden.new_empty(0)
    modulation = [x for x in (shift, scale, gate) if x is not None]
    parameters = [x for x in (weight, bias) if x is not None]
    return (
        change,
        nothing if gate is None else torch.empty_like(change),
        modulation[0].new_empty((len(modulation), *modulation[0].shape)) if modulation else nothing.clone(),
        parameters[0].new_empty((len(parameters), *parameters[0].shape)) if parameters else nothing.clone(),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    residual, branch, gate, shift, scale, weight, bias, _, _ = inputs
    hidden, _, mean, rstd = output
    kept = None if gate is None else branch
    ctx.save_for_backward(
        residual if branch is None else hidden, mean, rstd, kept, gate, shift, scale, weight, bias
    )
    ctx.dtypes = residual.dtype, None if branch is None else branch.dtype
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, d_hidden: OptionalTensor, d_out: OptionalTensor, *_: OptionalTensor
) -> tuple[OptionalTensor, ...]:
    hidden, mean, rstd, branch, gate, shift, scale, weight, bias = ctx.saved_tensors
    of_residual, of_branch = ctx.dtypes
    d_hidden = None if of_branch is None else d_hidden
    d_out = torch.zeros_like(hidden) if d_out is None else d_out
    change, d_branch, modulation, parameters = _backward(
        d_out, d_hidden, hidden, mean, rstd, branch, gate, shift, scale, weight, bias
    )
    if of_branch is not None:
        d_branch = (change if gate is None else d_branch).to(of_branch)
    sums = iter(modulation)
    d_shift, d_scale, d_gate = (None if x is None else next(sums).to(x.dtype) for x in (shift, scale, gate))
    sums = iter(parameters)
    d_weight, d_bias = (None if x is None else next(sums).to(x.dtype) for x in (weight, bias))
    d_residual = change.to(of_residual)
    return d_residual, d_branch if of_branch else None, d_gate, d_shift, d_scale, d_weight, d_bias, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _sum_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype of sums and statistics."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def dtype_of(*values: OptionalTensor) -> torch.dtype | None:
    """Return the dtype of the first existing tensor."""
    return next((value.dtype for value in values if value is not None), None)
