"""Triton programs of attention: a tile of queries a program forwards, all queries of a head and a sample backwards."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..attention import halves
from ..dispatch import INTERPRETED

_LOG2E = tl.constexpr(1.4426950408889634)
_WIDENS = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bits of bfloat16
_KEYS = 64


def forward(query, key, value, seen, scale):
    """What the reference of `attention` gives."""
    batch, queries, heads, depth = query.shape
    key, value = halves(key, value)
    keys = key.shape[1]
    query, key, value = (_dense(x) for x in (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    norm = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    tile = min(_tile(queries), 128)
    _forward[(batch * heads, triton.cdiv(queries, tile))](
        query, key, value, query if seen is None else seen.contiguous(), out, norm, scale * _LOG2E.value,
        heads, queries, keys, depth, *(stride for x in (query, key, value) for stride in x.stride()[:3]),
        MASKED=seen is not None, QUERIES=tile, KEYS=min(_KEYS, _tile(keys)), DEPTH=_tile(depth),
        num_warps=8 if tile == 128 else 4, num_stages=3,
    )  # fmt: skip
    return out, norm


def backward(d_out, query, key, value, seen, out, norm, scale):
    """What the reference of its gradients gives."""
    batch, queries, heads, depth = query.shape
    d_query, d_key = torch.empty_like(out), torch.empty(key.shape, dtype=key.dtype, device=key.device)
    d_value = d_key.new_empty(0) if value is None else torch.empty_like(d_key)
    grads = d_query, *halves(d_key, None if value is None else d_value)
    key, value = halves(key, value)
    keys = key.shape[1]
    d_out, query, key, value = (_dense(x) for x in (d_out, query, key, value))
    tile, step = _tile(queries), min(_KEYS, _tile(keys))
    _backward[(batch * heads,)](
        d_out, query, key, value, query if seen is None else seen.contiguous(), out, norm, *grads,
        scale, heads, queries, keys, depth,
        *(stride for x in (d_out, query, key, value, out, *grads) for stride in x.stride()[:3]),
        MASKED=seen is not None, QUERIES=tile, KEYS=step, REST=_tile(keys % step) if keys % step else 0,
        DEPTH=_tile(depth), num_warps=4 if tile <= 64 else 8, num_stages=2,
    )  # fmt: skip
    return d_query, d_key, d_value


def _dense(values):
    """The values, so that the last dimension is dense, and tokens lie within 32 bits of each other."""
    near = values.stride(-1) == 1 and values.stride(1) * values.shape[1] < 2**31
    return values if near else values.contiguous()


def _tile(count):
    return max(16, triton.next_power_of_2(count))


@triton.jit
def _dot(left, right, sums):
    if _WIDENS:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def _read(values, rows, count, stride, depth, DEPTH: tl.constexpr):
    d = tl.arange(0, DEPTH)
    within = (rows < count)[:, None] & (d < depth)[None, :]
    return tl.load(values + rows[:, None] * stride + d[None, :], within, other=0.0)


@triton.jit
def _write(values, given, rows, count, stride, depth, DEPTH: tl.constexpr):
    d = tl.arange(0, DEPTH)
    within = (rows < count)[:, None] & (d < depth)[None, :]
    tl.store(values + rows[:, None] * stride + d[None, :], given.to(values.dtype.element_ty), within)


@triton.jit
def _scores(q, k, seen, columns, keys, scale, MASKED: tl.constexpr):
    """Scores of keys, minus infinity for those that are not there or may not be seen."""
    shown = columns < keys
    if MASKED:
        shown = tl.load(seen + columns, shown, other=0) != 0
    return tl.where(shown[None, :], _dot(q, tl.trans(k), None) * scale, float("-inf"))


@triton.jit
def _forward(
    query, key, value, seen, out, norm, scale, heads, queries, keys, depth,
    qb, qt, qh, kb, kt, kh, vb, vt, vh,
    MASKED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch, head = index // heads, index % heads
    key += batch * kb + head * kh
    value += batch * vb + head * vh
    seen += batch * keys
    rows = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    q = _read(query + batch * qb + head * qh, rows, queries, qt, depth, DEPTH)
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, DEPTH], tl.float32)
    for first in range(0, keys, KEYS):
        columns = first + tl.arange(0, KEYS)
        k = _read(key, columns, keys, kt, depth, DEPTH)
        v = _read(value, columns, keys, vt, depth, DEPTH)
        scores = _scores(q, k, seen, columns, keys, scale, MASKED)
        highest = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest) if MASKED else highest  # nothing seen so far
        weights = tl.exp2(scores - base[:, None])
        fading = tl.exp2(best - base)
        total = total * fading + tl.sum(weights, 1)
        mixed = _dot(weights.to(v.dtype), v, mixed * fading[:, None])
        best = highest
    sees = total > 0.0
    ot = heads * depth
    into = out + batch * queries * ot + head * depth
    _write(into, mixed / tl.where(sees, total, 1.0)[:, None], rows, queries, ot, depth, DEPTH)
    tl.store(
        norm + index * queries + rows, tl.where(sees, best + tl.log2(total), float("inf")), rows < queries
    )


@triton.jit
def _backward(
    d_out, query, key, value, seen, out, norm, d_query, d_key, d_value, scale, heads, queries, keys, depth,
    db, dt, dh, qb, qt, qh, kb, kt, kh, vb, vt, vh, ob, ot, oh,
    dqb, dqt, dqh, dkb, dkt, dkh, dvb, dvt, dvh,
    MASKED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, REST: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch, head = index // heads, index % heads
    key += batch * kb + head * kh
    value += batch * vb + head * vh
    d_key += batch * dkb + head * dkh
    d_value += batch * dvb + head * dvh
    seen += batch * keys
    rows = tl.arange(0, QUERIES)
    q = _read(query + batch * qb + head * qh, rows, queries, qt, depth, DEPTH)
    d = _read(d_out + batch * db + head * dh, rows, queries, dt, depth, DEPTH)
    o = _read(out + batch * ob + head * oh, rows, queries, ot, depth, DEPTH)
    delta = tl.sum(o.to(tl.float32) * d.to(tl.float32), 1)
    total = tl.load(norm + index * queries + rows, rows < queries, other=float("inf"))
    dq = tl.zeros([QUERIES, DEPTH], tl.float32)
    whole = keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        dq = _tile_of_keys(q, d, delta, total, dq, key, value, seen, d_key, d_value, first, keys,
                           kt, vt, dkt, dvt, depth, scale, MASKED, KEYS, DEPTH)  # fmt: skip
    if REST > 0:
        dq = _tile_of_keys(q, d, delta, total, dq, key, value, seen, d_key, d_value, whole, keys,
                           kt, vt, dkt, dvt, depth, scale, MASKED, REST, DEPTH)  # fmt: skip
    _write(d_query + batch * dqb + head * dqh, dq * scale, rows, queries, dqt, depth, DEPTH)


@triton.jit
def _tile_of_keys(
    q, d, delta, total, dq, key, value, seen, d_key, d_value, first, keys, kt, vt, dkt, dvt, depth, scale,
    MASKED: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of some keys and their values, and adds theirs to that of the queries."""
    columns = first + tl.arange(0, KEYS)
    k = _read(key, columns, keys, kt, depth, DEPTH)
    v = _read(value, columns, keys, vt, depth, DEPTH)
    scores = _scores(q, k, seen, columns, keys, scale * _LOG2E, MASKED)
    weights = tl.exp2(scores - total[:, None])
    change = (weights * (_dot(d, tl.trans(v), None) - delta[:, None])).to(q.dtype)
    _write(d_value, _dot(tl.trans(weights.to(d.dtype)), d, None), columns, keys, dvt, depth, DEPTH)
    _write(d_key, _dot(tl.trans(change), q, None) * scale, columns, keys, dkt, depth, DEPTH)
    return _dot(change, k, dq)
