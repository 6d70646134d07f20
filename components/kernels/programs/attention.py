"""Triton programs of attention: a tile of queries per program forward, a head and sample backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..attention import split
from ..dispatch import INTERPRETED

_LOG2E = tl.constexpr(1.4426950408889634)
_WIDENS = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bits of bfloat16
_KEYS = 64


def forward(query, key, value, seen, scale):
    """Compute what the reference of `attention` returns."""
    query, key, value = (_dense(x) for x in (query, *split(key, value)))
    batch, queries, heads, depth = query.shape
    keys = key.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    norm = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
    tile = min(_tile(queries), 128)
    _forward[(batch * heads, triton.cdiv(queries, tile))](
        query, key, value, query if seen is None else seen.contiguous(), out, norm, scale * _LOG2E.value,
        heads, queries, keys, depth, *(stride for x in (query, key, value) for stride in x.stride()[:3]),
        MASKED=seen is not None, QUERIES=tile, **_key_tiles(keys), DEPTH=_tile(depth),
        num_warps=8 if tile == 128 else 4, num_stages=3,
    )  # fmt: skip
    return out, norm


def backward(d_out, query, key, value, seen, out, norm, scale):
    """Compute what the reference of its gradients returns."""
    d_query, d_key, d_value = (
        query.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (query, key, value)
    )
    grads = d_query, *split(d_key, None if value is None else d_value)
    d_out, query, key, value = (_dense(x) for x in (d_out, query, *split(key, value)))
    batch, queries, heads, depth = query.shape
    keys = key.shape[1]
    tile = _tile(queries)
    _backward[(batch * heads,)](
        d_out, query, key, value, query if seen is None else seen.contiguous(), out, norm, *grads,
        scale, heads, queries, keys, depth,
        *(stride for x in (d_out, query, key, value, out, *grads) for stride in x.stride()[:3]),
        MASKED=seen is not None, QUERIES=tile, **_key_tiles(keys), DEPTH=_tile(depth),
        num_warps=4 if tile <= 64 else 8, num_stages=2,
    )  # fmt: skip
    return d_query, d_key, d_value


def _key_tiles(keys):
    """Return the sizes of whole tiles of keys, and of one tile for the remainder."""
    step = min(_KEYS, _tile(keys))
    return {"KEYS": step, "REST": _tile(keys % step) if keys % step else 0}


def _dense(values):
    """Return the values with a dense last dimension, and tokens within 32 bits of each other."""
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
def _read(values, rows, count, stride, depth: tl.constexpr, WHOLE: tl.constexpr, DEPTH: tl.constexpr):
    d = tl.arange(0, DEPTH)
    at = values + rows[:, None] * stride + d[None, :]
    if WHOLE and depth == DEPTH:
        found = tl.load(at)
    else:
        found = tl.load(at, (rows < count)[:, None] & (d < depth)[None, :], other=0.0)
    return found


@triton.jit
def _write(values, given, rows, count, stride, depth: tl.constexpr, WHOLE: tl.constexpr, DEPTH: tl.constexpr):
    d = tl.arange(0, DEPTH)
    at = values + rows[:, None] * stride + d[None, :]
    given = given.to(values.dtype.element_ty)
    if WHOLE and depth == DEPTH:
        tl.store(at, given)
    else:
        tl.store(at, given, (rows < count)[:, None] & (d < depth)[None, :])


@triton.jit
def _scores(q, k, seen, columns, keys, scale, MASKED: tl.constexpr, WHOLE: tl.constexpr):
    """Compute the scores of keys, minus infinity for those past the end or hidden."""
    scores = _dot(q, tl.trans(k), None) * scale
    if MASKED or not WHOLE:
        shown = columns < keys
        if MASKED:
            shown = tl.load(seen + columns, shown, other=0) != 0
        scores = tl.where(shown[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _forward(
    query, key, value, seen, out, norm, scale, heads, queries, keys, depth: tl.constexpr,
    qb, qt, qh, kb, kt, kh, vb, vt, vh,
    MASKED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, REST: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch, head = index // heads, index % heads
    key += batch * kb + head * kh
    value += batch * vb + head * vh
    seen += batch * keys
    rows = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    q = _read(query + batch * qb + head * qh, rows, queries, qt, depth, False, DEPTH)
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, DEPTH], tl.float32)
    whole = keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        best, total, mixed = _mix(q, best, total, mixed, key, value, seen, first, keys, kt, vt, scale,
                                  depth, MASKED, True, KEYS, DEPTH)  # fmt: skip
    if REST > 0:
        best, total, mixed = _mix(q, best, total, mixed, key, value, seen, whole, keys, kt, vt, scale,
                                  depth, MASKED, False, REST, DEPTH)  # fmt: skip
    sees = total > 0.0
    ot = heads * depth
    into = out + batch * queries * ot + head * depth
    _write(into, mixed / tl.where(sees, total, 1.0)[:, None], rows, queries, ot, depth, False, DEPTH)
    tl.store(
        norm + index * queries + rows, tl.where(sees, best + tl.log2(total), float("inf")), rows < queries
    )


@triton.jit
def _mix(
    q, best, total, mixed, key, value, seen, first, keys, kt, vt, scale,
    depth: tl.constexpr, MASKED: tl.constexpr, WHOLE: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add the values of a tile of keys to the running output."""
    columns = first + tl.arange(0, KEYS)
    k = _read(key, columns, keys, kt, depth, WHOLE, DEPTH)
    v = _read(value, columns, keys, vt, depth, WHOLE, DEPTH)
    scores = _scores(q, k, seen, columns, keys, scale, MASKED, WHOLE)
    highest = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest) if MASKED else highest  # nothing seen so far
    weights = tl.exp2(scores - base[:, None])
    fading = tl.exp2(best - base)
    total = total * fading + tl.sum(weights, 1)
    return highest, total, _dot(weights.to(v.dtype), v, mixed * fading[:, None])


@triton.jit
def _backward(
    d_out, query, key, value, seen, out, norm, d_query, d_key, d_value, scale, heads, queries, keys,
    depth: tl.constexpr,
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
    q = _read(query + batch * qb + head * qh, rows, queries, qt, depth, False, DEPTH)
    d = _read(d_out + batch * db + head * dh, rows, queries, dt, depth, False, DEPTH)
    o = _read(out + batch * ob + head * oh, rows, queries, ot, depth, False, DEPTH)
    delta = tl.sum(o.to(tl.float32) * d.to(tl.float32), 1)
    total = tl.load(norm + index * queries + rows, rows < queries, other=float("inf"))
    dq = tl.zeros([QUERIES, DEPTH], tl.float32)
    whole = keys // KEYS * KEYS
    for first in range(0, whole, KEYS):
        dq = _tile_of_keys(q, d, delta, total, dq, key, value, seen, d_key, d_value, first, keys,
                           kt, vt, dkt, dvt, scale, depth, MASKED, True, KEYS, DEPTH)  # fmt: skip
    if REST > 0:
        dq = _tile_of_keys(q, d, delta, total, dq, key, value, seen, d_key, d_value, whole, keys,
                           kt, vt, dkt, dvt, scale, depth, MASKED, False, REST, DEPTH)  # fmt: skip
    dq *= scale
    _write(d_query + batch * dqb + head * dqh, dq, rows, queries, dqt, depth, False, DEPTH)


@triton.jit
def _tile_of_keys(
    q, d, delta, total, dq, key, value, seen, d_key, d_value, first, keys, kt, vt, dkt, dvt, scale,
    depth: tl.constexpr, MASKED: tl.constexpr, WHOLE: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a tile of keys and values, and add its share to that of the queries."""
    columns = first + tl.arange(0, KEYS)
    k = _read(key, columns, keys, kt, depth, WHOLE, DEPTH)
    v = _read(value, columns, keys, vt, depth, WHOLE, DEPTH)
    scores = _scores(q, k, seen, columns, keys, scale * _LOG2E, MASKED, WHOLE)
    weights = tl.exp2(scores - total[:, None])
    change = (weights * (_dot(d, tl.trans(v), None) - delta[:, None])).to(q.dtype)
    _write(d_value, _dot(tl.trans(weights.to(d.dtype)), d, None), columns, keys, dvt, depth, WHOLE, DEPTH)
    _write(d_key, _dot(tl.trans(change), q, None) * scale, columns, keys, dkt, depth, WHOLE, DEPTH)
    return _dot(change, k, dq)
