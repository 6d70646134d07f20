"""Attention of few queries, whose backward pass keeps all queries of a head together.

    out = softmax(scale * query key^T) value

Other kernels go over tiles of queries and of keys (FlashAttention-2, Dao, 2023) and have to add up the gradients of queries
between them. With up to 256 queries one program holds those of a head, so each value is read and each gradient written
once. What one projection leaves may stay one tensor: keys and values, or queries too; then their gradients are one, too.

The gradient of that projection's bias, elsewhere a sum over all its tokens, costs next to nothing here. A bias of keys adds the
same to all scores of a query, which changes no softmax: its gradient is zero. One of values is added to what every query
gathers: its gradient is the sum of those of the output.
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
    key: Tensor | None = None,
    value: Tensor | None = None,
    seen: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """query (B, N, H, E), key and value (B, M, H, E) -> (B, N, H, E).

    One tensor may be several: without a value, keys and values are the halves of `key` (B, M, 2, H, E); without a key, the
    thirds of `query` (B, N, 3, H, E) are queries, keys and values. `bias` (2 or 3, H, E) is for its gradient alone: the caller
    has added `bias.detach()` to such a tensor, and nothing has changed the sum since; otherwise the gradient is wrong.

    `seen`, bool (B, M), is True where a key may be seen; a query that sees none gathers zeros. The scale is 1 / sqrt(E)
    unless given. Raises ValueError for more than `QUERIES` queries, for heads wider than `WIDTH`, and for shapes and dtypes
    that do not fit.
    """
    if query.shape[1] > QUERIES or query.shape[-1] > WIDTH:
        raise ValueError(
            f"made for up to {QUERIES} queries of up to {WIDTH} numbers, not {tuple(query.shape)}"
        )
    if not _fit(query, key, value, seen, bias):
        kinds = [
            None if x is None else f"{x.dtype} {tuple(x.shape)}" for x in (query, key, value, seen, bias)
        ]
        raise ValueError(f"query, key, value, what is seen and bias do not fit: {', '.join(map(str, kinds))}")
    out, _ = _forward(query, key, value, seen, bias, query.shape[-1] ** -0.5 if scale is None else scale)
    return out  # type: ignore[no-any-return]


def _fit(
    query: Tensor, key: Tensor | None, value: Tensor | None, seen: Tensor | None, bias: Tensor | None
) -> bool:
    batch, count, *heads = query.shape
    if key is None:
        held, keys, fits = 3, count, value is None and len(heads) == 3 and heads[0] == 3
        heads = heads[1:]
    else:
        held, keys = 2 if value is None else 1, key.shape[1]
        wanted = (batch, keys, *((2,) if value is None else ()), *heads)
        fits = len(heads) == 2 and key.shape == wanted and (value is None or value.shape == wanted)
    fits = fits and all(x is None or x.dtype == query.dtype for x in (key, value))
    sees = seen is None or seen.shape == (batch, keys)
    return fits and sees and (bias is None or (held > 1 and bias.shape == (held, *heads)))


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
    key: Tensor | None = None,
    value: Tensor | None = None,
    seen: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """The same in plain torch."""
    if bias is not None:
        nothing = bias - bias.detach()
        query, key = (query + nothing, None) if key is None else (query, key + nothing)
    query, key, value = (x.transpose(1, 2) for x in apart(query, key, value))
    allowed = None if seen is None else seen[:, None, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale).transpose(1, 2)
    if seen is not None:  # some kernels mix the hidden where nothing is seen
        mixed = mixed.masked_fill(~seen.any(-1)[:, None, None, None], 0.0)
    return mixed


def apart(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, also where some are one tensor."""
    if key is None:
        query, key, value = query.unbind(2)
    elif value is None:
        key, value = key.unbind(2)
    return query, key, value


def _forward_reference(
    query: Tensor, key: Tensor | None, value: Tensor | None, seen: Tensor | None, bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is mixed (B, N, H, E), and the binary logarithm (B, H, N) of the sum of each query's weights, or infinity."""
    query, key, value = apart(query, key, value)
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = _scores(query.to(precise), key.to(precise), seen, scale)
    norm = scores.logsumexp(-1)
    norm = norm.masked_fill(norm == -math.inf, math.inf)
    mixed = torch.einsum("bhnm,bmhe->bnhe", (scores - norm[..., None]).exp(), value.to(precise))
    return mixed.to(query.dtype).contiguous(), norm / math.log(2.0)


def _backward_reference(
    d_out: Tensor, query: Tensor, key: Tensor | None, value: Tensor | None, seen: Tensor | None, out: Tensor,
    norm: Tensor, biased: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value, empty where another holds them, and of the bias (2 or 3, H, E), if there is one."""
    q, k, v = (x.to(norm.dtype) for x in apart(query, key, value))
    d, mixed = d_out.to(norm.dtype), out.to(norm.dtype)
    weights = (_scores(q, k, seen, scale) - norm[..., None] * math.log(2.0)).exp()
    d_value = torch.einsum("bhnm,bnhe->bmhe", weights, d)
    change = torch.einsum("bnhe,bmhe->bhnm", d, v) - (d * mixed).sum(-1).transpose(1, 2)[..., None]
    scores = scale * weights * change
    d_query = torch.einsum("bhnm,bmhe->bnhe", scores, k)
    d_key = torch.einsum("bhnm,bnhe->bmhe", scores, q)
    nothing = query.new_empty(0)
    d_bias = norm.new_empty(0)
    if biased:
        passed = torch.where((norm < math.inf).transpose(1, 2)[..., None], d, 0.0).sum((0, 1))
        sums = [torch.zeros_like(passed), passed]
        d_bias = torch.stack([d_query.sum((0, 1)), *sums] if key is None else sums)
    if key is None:
        grads = torch.stack([d_query, d_key, d_value], dim=2), nothing, query.new_empty(0)
    elif value is None:
        grads = d_query.contiguous(), torch.stack([d_key, d_value], dim=2), nothing
    else:
        grads = d_query.contiguous(), d_key.contiguous(), d_value.contiguous()
    d_query, d_key, d_value = (x.to(query.dtype) for x in grads)
    return d_query, d_key, d_value, d_bias


def _scores(query: Tensor, key: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    scores = scale * torch.einsum("bnhe,bmhe->bhnm", query, key)
    return scores if seen is None else scores.masked_fill(~seen[:, None, None], -math.inf)


_forward = operator(
    "attention",
    "forward",
    "(Tensor query, Tensor? key, Tensor? value, Tensor? seen, Tensor? bias, float scale) -> (Tensor, Tensor)",
    _forward_reference,
)
_backward = operator(
    "attention",
    "backward",
    "(Tensor d_out, Tensor query, Tensor? key, Tensor? value, Tensor? seen, Tensor out, Tensor norm, bool biased, "
    "float scale) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_reference,
)

OPERATOR = torch.ops.policysmith.attention_forward.default


@_forward.register_fake
def _(
    query: Tensor, key: Tensor | None, value: Tensor | None, seen: Tensor | None, bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, count, *_, heads, width = query.shape
    norm = query.new_empty(batch, heads, count, dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(batch, count, heads, width), norm


@_backward.register_fake
def _(
    d_out: Tensor, query: Tensor, key: Tensor | None, value: Tensor | None, seen: Tensor | None, out: Tensor,
    norm: Tensor, biased: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_key, d_value = (query.new_empty(0 if x is None else x.shape) for x in (key, value))
    d_bias = norm.new_empty((3 if key is None else 2, *query.shape[-2:]) if biased else 0)
    return query.new_empty(query.shape), d_key, d_value, d_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, seen, bias, ctx.scale = inputs
    ctx.bias = None if bias is None else bias.dtype
    ctx.save_for_backward(query, key, value, seen, *output)


def _gradients(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    _, key, value, *_ = ctx.saved_tensors
    biased = ctx.bias is not None and ctx.needs_input_grad[4]
    *grads, d_bias = _backward(d_out, *ctx.saved_tensors, biased, ctx.scale)
    d_query, d_key, d_value = (
        x if there else None
        for x, there in zip(grads, (True, key is not None, value is not None), strict=True)
    )
    return d_query, d_key, d_value, None, d_bias.to(ctx.bias) if biased else None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _heads_first(query: torch.Size, key: torch.Size | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    batch, count, *_, heads, width = query
    return (batch, heads, count, width), (batch, heads, count if key is None else key[1], width)


@register_flop_formula(torch.ops.policysmith.attention_forward)
def _(query: torch.Size, key: torch.Size | None, *_: Any, **__: Any) -> int:
    one, other = _heads_first(query, key)
    return int(sdpa_flop_count(one, other, other))


@register_flop_formula(torch.ops.policysmith.attention_backward)
def _(d_out: torch.Size, query: torch.Size, key: torch.Size | None, *_: Any, **__: Any) -> int:
    one, other = _heads_first(query, key)
    return int(sdpa_backward_flop_count(one, one, other, other))
