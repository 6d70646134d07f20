"""Attention of few queries, whose backward pass keeps all queries of a head together.

    out = softmax(scale * query key^T) value

Other kernels go over tiles of queries and of keys (FlashAttention-2, Dao, 2023) and have to add up the gradients of queries
between them. With up to 256 queries one program holds those of a head, so each value is read and each gradient written
once. Keys and values may be two halves of one tensor, as one projection leaves them; then their gradients are, too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from .dispatch import fused, operator

QUERIES, WIDTH = 256, 128
"""The most queries and the widest heads that the programs are made for."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """query (B, N, H, E), key and value (B, M, H, E) -> (B, N, H, E).

    Without a value, keys and values are the halves of `key` (B, M, 2, H, E). `seen`, bool (B, M), is True where a key may be
    seen; a query that sees none gathers zeros. The scale is 1 / sqrt(E) unless given.
    Raises ValueError for more than `QUERIES` queries, for heads wider than `WIDTH`, and for shapes that do not fit.
    """
    if query.shape[1] > QUERIES or query.shape[-1] > WIDTH:
        raise ValueError(
            f"made for up to {QUERIES} queries of up to {WIDTH} numbers, not {tuple(query.shape)}"
        )
    batch, keys = key.shape[:2]
    wanted = (query.shape[0], keys, *((2,) if value is None else ()), *query.shape[2:])
    fits = key.shape == wanted and (value is None or value.shape == wanted)
    if not fits or (seen is not None and seen.shape != (batch, keys)):
        shapes = [None if x is None else tuple(x.shape) for x in (query, key, value, seen)]
        raise ValueError("query, key, value and what is seen do not fit: {}, {}, {}, {}".format(*shapes))
    out, _ = _forward(query, key, value, seen, query.shape[-1] ** -0.5 if scale is None else scale)
    return out  # type: ignore[no-any-return]


def serves(query: Tensor, key: Tensor) -> bool:
    """Whether a part leaves these to the kernel: half precision on a GPU, of shapes where it is the faster one.

    By `benchmarks/attention.py`, heads of more than 64 numbers are not. Most is saved in the backward pass, so where there
    will be none, torch attends, which the host launches in less time.
    """
    halved = query.dtype in (torch.bfloat16, torch.float16) and key.dtype == query.dtype
    small = query.shape[1] <= QUERIES and query.shape[-1] <= 64
    return torch.is_grad_enabled() and halved and small and query.shape[0] == key.shape[0] and fused(query)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    seen: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """The same in plain torch."""
    query, key, value = (x.transpose(1, 2) for x in (query, *halves(key, value)))
    allowed = None if seen is None else seen[:, None, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale).transpose(1, 2)
    if seen is not None:  # some kernels mix the hidden where nothing is seen
        mixed = mixed.masked_fill(~seen.any(-1)[:, None, None, None], 0.0)
    return mixed


def halves(key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values, where they are one tensor, too."""
    if value is not None:
        return key, value
    key, value = key.unbind(2)
    return key, value


def _forward_reference(
    query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """What is mixed (B, N, H, E), and the binary logarithm (B, H, N) of the sum of each query's weights, or infinity."""
    key, value = halves(key, value)
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = _scores(query.to(precise), key.to(precise), seen, scale)
    norm = scores.logsumexp(-1)
    norm = norm.masked_fill(norm == -math.inf, math.inf)
    mixed = torch.einsum("bhnm,bmhe->bnhe", (scores - norm[..., None]).exp(), value.to(precise))
    return mixed.to(query.dtype).contiguous(), norm / math.log(2.0)


def _backward_reference(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, out: Tensor, norm: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value, the last empty where the key holds both."""
    keys, values = halves(key, value)
    q, k, v, d, mixed = (x.to(norm.dtype) for x in (query, keys, values, d_out, out))
    weights = (_scores(q, k, seen, scale) - norm[..., None] * math.log(2.0)).exp()
    d_value = torch.einsum("bhnm,bnhe->bmhe", weights, d)
    change = torch.einsum("bnhe,bmhe->bhnm", d, v) - (d * mixed).sum(-1).transpose(1, 2)[..., None]
    scores = scale * weights * change
    d_query = torch.einsum("bhnm,bmhe->bnhe", scores, k).to(query.dtype).contiguous()
    d_key = torch.einsum("bhnm,bnhe->bmhe", scores, q)
    if value is None:
        return d_query, torch.stack([d_key, d_value], dim=2).to(key.dtype), key.new_empty(0)
    return d_query, d_key.to(key.dtype).contiguous(), d_value.to(value.dtype).contiguous()


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
    batch, count, heads, _ = query.shape
    norm = query.new_empty(batch, heads, count, dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), norm


@_backward.register_fake
def _(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor | None, seen: Tensor | None, out: Tensor, norm: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d_value = key.new_empty(0) if value is None else value.new_empty(value.shape)
    return query.new_empty(query.shape), key.new_empty(key.shape), d_value


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, seen, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, seen, *output)


def _gradients(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    _, _, value, *_ = ctx.saved_tensors
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
