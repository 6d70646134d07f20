"""Group norm, Mish and FiLM in one pass, as after a convolution of a 1-D U-Net.

    out = scale * mish(norm(x)) + shift        mish(z) = z tanh(log(1 + e^z))

GroupNorm (Wu & He, 2018) with weight and bias; Mish (Misra, 2019); scale and shift per sample and channel are
those of FiLM (Perez et al., 2018), as in Diffusion Policy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import operator

OptionalTensor = Tensor | None


def group_norm_mish(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: OptionalTensor = None,
    shift: OptionalTensor = None,
    eps: float = 1e-5,
) -> Tensor:
    """Map x (B, C, T) to (B, C, T), in its dtype.

    weight and bias are (C,), of one dtype; scale and shift, if any, are (B, C), of one dtype. Raise
    ValueError if `groups` do not divide the channels.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{groups} groups cannot share {x.shape[1]} channels")
    out: Tensor = _forward(x, groups, weight, bias, scale, shift, eps)[0]
    return out


def reference(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: OptionalTensor = None,
    shift: OptionalTensor = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `group_norm_mish` in plain torch."""
    out = F.mish(F.group_norm(x, groups, weight, bias, eps))
    out = out if scale is None else out * scale[..., None]
    out = out if shift is None else out + shift[..., None]
    return out.to(x.dtype)


def _forward_reference(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: OptionalTensor,
    shift: OptionalTensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `out`, and `mean` and `rstd` (B, G) of the groups."""
    values = x.to(_sum_dtype(x)).unflatten(1, (groups, -1)).flatten(2)
    mean = values.mean(-1)
    rstd = ((values - mean[..., None]).square().mean(-1) + eps).rsqrt()
    return reference(x, groups, weight, bias, scale, shift, eps), mean, rstd


def _backward_reference(
    d_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: OptionalTensor,
    shift: OptionalTensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of x (B, C, T), of existing scale and shift (K, B, C), of weight and bias (2, C)."""
    dtype, groups = _sum_dtype(x), mean.shape[1]
    shape = x.shape
    d = d_out.to(dtype)
    grouped = x.to(dtype).unflatten(1, (groups, -1)).flatten(2)
    normal = ((grouped - mean[..., None]) * rstd[..., None]).reshape(shape)
    z = normal * weight.to(dtype)[:, None] + bias.to(dtype)[:, None]
    film = [] if scale is None else [(d * F.mish(z)).sum(-1)]
    film += [] if shift is None else [d.sum(-1)]
    d = d if scale is None else d * scale.to(dtype)[..., None]
    gate = F.softplus(z).tanh()
    d = d * (gate + z * (1.0 - gate.square()) * z.sigmoid())
    affine = torch.stack([(d * normal).sum((0, 2)), d.sum((0, 2))]).to(weight.dtype)
    d, normal = (y.unflatten(1, (groups, -1)).flatten(2) for y in (d * weight.to(dtype)[:, None], normal))
    change = d - d.mean(-1, keepdim=True) - normal * (d * normal).mean(-1, keepdim=True)
    d_x = (change * rstd[..., None]).reshape(shape).to(x.dtype)
    like = scale if scale is not None else shift
    return d_x, x.new_empty(0) if like is None else torch.stack(film).to(like.dtype), affine


_forward = operator(
    "group_norm_mish",
    "forward",
    "(Tensor x, int groups, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    _forward_reference,
)
_backward = operator(
    "group_norm_mish",
    "backward",
    "(Tensor d_out, Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_reference,
)


@_forward.register_fake
def _(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: OptionalTensor,
    shift: OptionalTensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.empty(len(x), groups, dtype=_sum_dtype(x), device=x.device)
    return x.new_empty(x.shape), rows, torch.empty_like(rows)


@_backward.register_fake
def _(
    d_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: OptionalTensor,
    shift: OptionalTensor,
) -> tuple[Tensor, Tensor, Tensor]:
    film = [y for y in (scale, shift) if y is not None]
    changes = film[0].new_empty((len(film), *film[0].shape)) if film else x.new_empty(0)
    return x.new_empty(x.shape), changes, weight.new_empty(2, len(weight))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, weight, bias, scale, shift, _ = inputs
    ctx.save_for_backward(x, *output[1:], weight, bias, scale, shift)


def _gradients(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[OptionalTensor, ...]:
    _x, _mean, _rstd, weight, bias, scale, shift = ctx.saved_tensors
    d_x, film, affine = _backward(d_out, *ctx.saved_tensors)
    changes = iter(film)
    d_scale, d_shift = (None if y is None else next(changes).to(y.dtype) for y in (scale, shift))
    d_weight, d_bias = affine[0].to(weight.dtype), affine[1].to(bias.dtype)
    return d_x, None, d_weight, d_bias, d_scale, d_shift, None


_forward.register_autograd(_gradients, setup_context=_save)


def _sum_dtype(values: Tensor) -> torch.dtype:
    """Return the dtype of sums and statistics."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
