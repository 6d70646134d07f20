"""Attention of up to 256 queries, whose backward pass keeps all queries of a head in one program.

    out = softmax(scale * query key^T) value

Other kernels go over tiles of queries and of keys (FlashAttention-2, Dao, 2023) and have to add up the
gradients of queries between them. With few queries one program holds those of a head, so each value is read
and each gradient written once. Keys and values of one projection may stay one tensor; their gradients are one
tensor, too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from .dispatch import operator, uses_kernel

QUERIES, WIDTH = 256, 128
"""The most queries and the widest heads that the programs support."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attend from each query to all keys of its sample and head.

    Args:
        query: (B, N, H, E).
        key: (B, M, H, E), or keys and values together, (B, M, 2, H, E).
        value: (B, M, H, E), or None where `key` holds the values.
        seen: bool (B, M), True for keys that may be attended to. A query that sees none gathers zeros.
        scale: factor of the scores, 1 / sqrt(E) by default.

    Returns:
        (B, N, H, E).

    Raises:
        ValueError: More than `QUERIES` queries, heads wider than `WIDTH`, or unfit shapes or dtypes.
    """
    if query.shape[1] > QUERIES or query.shape[-1] > WIDTH:
        raise ValueError(
            f"made for up to {QUERIES} queries of up to {WIDTH} numbers, not {tuple(query.shape)}"
        )
    if not _fit(query, key, value, seen):
        kinds = [None if x is None else f"{x.dtype} {tuple(x.shape)}" for x in (query, key, value, seen)]
        raise ValueError(f"query, key, value and mask do not fit: {', '.join(map(str, kinds))}")
    out, _ = _forward(query, key, value, seen, query.shape[-1] ** -0.5 if scale is None else scale)
    return out  # type: ignore[no-any-return]


def _fit(query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None) -> bool:
    batch, _, *heads = query.shape
    keys = key.shape[1]
    shape = (batch, keys, *((2,) if value is None else ()), *heads)
    shapes_fit = len(heads) == 2 and key.shape == shape and (value is None or value.shape == shape)
    dtypes_fit = all(x is None or x.dtype == query.dtype for x in (key, value))
    return shapes_fit and dtypes_fit and (seen is None or seen.shape == (batch, keys))


def serves(query: Tensor, key: Tensor) -> bool:
    """Return whether the kernel is the faster choice: half precision on a GPU, and a suitable shape.

    By `benchmarks/attention.py`, heads of more than 64 numbers are not. Most time is saved in the backward
    pass, so without gradients torch attends, which the host launches sooner.
    """
    half = query.dtype in (torch.bfloat16, torch.float16) and key.dtype == query.dtype
    small = query.shape[1] <= QUERIES and query.shape[-1] <= 64
    return (
        torch.is_grad_enabled() and half and small and query.shape[0] == key.shape[0] and uses_kernel(query)
    )


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Compute `attention` in plain torch."""
    query, key, value = (x.transpose(1, 2) for x in (query, *split(key, value)))
    allowed = None if seen is None else seen[:, None, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale).transpose(1, 2)
    if seen is not None:  # some backends attend to hidden keys where none is seen
        mixed = mixed.masked_fill(~seen.any(-1)[:, None, None, None], 0.0)
    return mixed


def split(key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return keys and values as two tensors, views of `key` where it holds both."""
    if value is None:
        key, value = key.unbind(2)
    return key, value


def _forward_reference(
    query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output (B, N, H, E), and log2 (B, H, N) of the sum of each query's weights, or infinity."""
    key, value = split(key, value)
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = _scores(query.to(precise), key.to(precise), seen, scale)
    norm = scores.logsumexp(-1)
    norm = norm.masked_fill(norm == -math.inf, math.inf)
    mixed = torch.einsum("bhnm,bmhe->bnhe", (scores - norm[..., None]).exp(), value.to(precise))
    return mixed.to(query.dtype).contiguous(), norm / math.log(2.0)


def _backward_reference(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, out: Tensor,
    norm: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value; the last is empty where `key` holds the values."""
    q, k, v = (x.to(norm.dtype) for x in (query, *split(key, value)))
    d, mixed = d_out.to(norm.dtype), out.to(norm.dtype)
    weights = (_scores(q, k, seen, scale) - norm[..., None] * math.log(2.0)).exp()
    d_value = torch.einsum("bhnm,bnhe->bmhe", weights, d)
    change = torch.einsum("bnhe,bmhe->bhnm", d, v) - (d * mixed).sum(-1).transpose(1, 2)[..., None]
    scores = scale * weights * change
    d_query = torch.einsum("bhnm,bmhe->bnhe", scores, k).contiguous()
    d_key = torch.einsum("bhnm,bnhe->bmhe", scores, q)
    if value is None:
        d_key, d_value = torch.stack([d_key, d_value], dim=2), query.new_empty(0)
    else:
        d_key, d_value = d_key.contiguous(), d_value.contiguous()
    return d_query.to(query.dtype), d_key.to(query.dtype), d_value.to(query.dtype)


def _scores(query: Tensor, key: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    scores = scale * torch.einsum("bnhe,bmhe->bhnm", query, key)
    return scores if seen is None else scores.masked_fill(~seen[:, None, None], -math.inf)


_forward = operator(
    "attention",
    "forward",
    "(Tensor query, Tensor key, Tensor? value, Tensor? seen, float scale) -> (Tensor, Tensor)",
    _forward_reference,
)
_backward = operator(
    "attention",
    "backward",
    "(Tensor d_out, Tensor query, Tensor key, Tensor? value, Tensor? seen, Tensor out, Tensor norm, float scale) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_reference,
)

OPERATOR = torch.ops.policysmith.attention_forward.default


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    batch, count, heads, width = query.shape
    norm = query.new_empty(batch, heads, count, dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(batch, count, heads, width), norm


@_backward.register_fake
def _(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, out: Tensor,
    norm: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d_value = query.new_empty(0 if value is None else value.shape)
    return query.new_empty(query.shape), key.new_empty(key.shape), d_value


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    value = ctx.saved_tensors[2]
    d_query, d_key, d_value = _backward(d_out, *ctx.saved_tensors, ctx.scale)
    return d_query, d_key, None if value is None else d_value, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _heads_first(query: torch.Size, key: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    batch, count, heads, width = query
    return (batch, heads, count, width), (batch, heads, key[1], width)


@register_flop_formula(torch.ops.policysmith.attention_forward)
def _(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    one, other = _heads_first(query, key)
    return int(sdpa_flop_count(one, other, other))


@register_flop_formula(torch.ops.policysmith.attention_backward)
def _(d_out: torch.Size, query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    one, other = _heads_first(query, key)
    return int(sdpa_backward_flop_count(one, one, other, other))
