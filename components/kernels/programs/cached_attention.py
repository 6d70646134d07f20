"""Triton programs of attention to a cache: rows of a group and a share of the keys per program, then the sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch import INTERPRETED

_LOG2E = tl.constexpr(1.4426950408889634)
_WIDENS = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bits of bfloat16
_PROGRAMS = 132  # enough to fill a GPU
_MANY = 1024  # rows from which tiles are large, unless own keys take the room


def forward(query, key, value, keys, values, cosine, sine, mask, scale):
    """Compute what the reference of `cached_attention` returns."""
    batch, tokens, heads, width = query.shape
    groups, cached = key.shape[1:3]
    query, key, value, keys, values = (
        x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, keys, values)
    )
    cosine, sine = (None if x is None else x.contiguous() for x in (cosine, sine))
    mask = mask if mask is None or mask.stride(-1) == 1 else mask.contiguous()
    hidden = (0, 0) if mask is None else (mask.stride(0) if len(mask) > 1 else 0, mask.stride(2))
    count = heads // groups * tokens
    half = query.element_size() == 2
    tile = 128 if half and keys is None and count >= _MANY else 32
    step = 64 if half else 16
    of_cache = triton.cdiv(cached, step)
    tiles = of_cache + (0 if keys is None else triton.cdiv(tokens, step))
    blocks = triton.cdiv(count, tile)
    per = triton.cdiv(tiles, max(1, min(tiles, _PROGRAMS // (batch * groups * blocks))))
    splits = triton.cdiv(tiles, per)
    out = torch.empty(batch, tokens, heads * width, dtype=query.dtype, device=query.device)
    rows = batch * groups * count
    parts = torch.empty(splits, rows, width, dtype=query.dtype, device=query.device)
    best, total = torch.empty(2, splits, rows, dtype=torch.float32, device=query.device)
    own = (query if keys is None else keys), (query if values is None else values)
    _attend[(batch * groups, blocks, splits)](
        query, key, value, *own, *(query if x is None else x for x in (cosine, sine, mask)),
        parts, best, total, scale * _LOG2E.value,
        tokens, cached, count, groups, heads // groups, per, of_cache, tiles,
        *(stride for x in (query, key, value, *own) for stride in x.stride()[:3]), *hidden,
        HALF=width // 2, OWN=keys is not None, ROTATES=cosine is not None, MASKED=mask is not None,
        BY_TOKEN=mask is not None and mask.shape[2] == tokens,
        ROWS=tile, KEYS=step, DEPTH=max(16, triton.next_power_of_2(width // 2)),
        num_warps=8, num_stages=2,
    )  # fmt: skip
    _combine[(rows,)](
        parts, best, total, out, rows, tokens, count, groups, heads, width,
        SPLITS=splits, WIDTH=triton.next_power_of_2(width), num_warps=1,
    )  # fmt: skip
    return out


@triton.jit
def _dot(left, right, sums):
    if _WIDENS:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def _rotate(first, second, cosine, sine, at, inside):
    """Rotate the halves of heads, and round them as they were."""
    c = tl.load(cosine + at, inside, other=0.0)
    s = tl.load(sine + at, inside, other=0.0)
    x, y = first.to(tl.float32), second.to(tl.float32)
    return (x * c - y * s).to(first.dtype), (y * c + x * s).to(first.dtype)


@triton.jit
def _mix(q, r, k, l, v, w, shown, best, total, left, right, scale):
    """Add values, in halves v and w, of keys, in halves k and l, to the running sums of the queries q and r."""
    scores = _dot(r, tl.trans(l), _dot(q, tl.trans(k), None)) * scale
    scores = tl.where(shown, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, 1)
    rounded = weights.to(v.dtype)
    left = _dot(rounded, v, left * shrink[:, None])
    right = _dot(rounded, w, right * shrink[:, None])
    return higher, total, left, right


@triton.jit
def _attend(
    query, key, value, own_key, own_value, cosine, sine, mask, parts, best_out, total_out, scale,
    tokens, cached, count, groups, shared, per, of_cache, tiles,
    qb, qt, qh, kb, kg, kn, vb, vg, vn, ob, ot, og, wb, wt, wg, hb, hr,
    HALF: tl.constexpr, OWN: tl.constexpr, ROTATES: tl.constexpr, MASKED: tl.constexpr,
    BY_TOKEN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Attend to `per` tiles of keys: sums of values (splits, rows, E), largest scores, and sums of weights."""
    index = tl.program_id(0).to(tl.int64)
    batch, group = index // groups, index % groups
    split = tl.program_id(2)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    head, token = group * shared + rows // tokens, rows % tokens
    d = tl.arange(0, DEPTH)
    wide = (d < HALF)[None, :]
    known = inside[:, None] & wide
    key += batch * kb + group * kg
    value += batch * vb + group * vg
    first, last = split * per, tl.minimum((split + 1) * per, tiles)
    asks = query + batch * qb + head[:, None] * qh + token[:, None] * qt + d[None, :]
    q = tl.load(asks, known, other=0.0)
    r = tl.load(asks + HALF, known, other=0.0)
    table = batch * tokens * HALF
    if ROTATES:
        q, r = _rotate(q, r, cosine, sine, table + token[:, None] * HALF + d[None, :], known)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    left = tl.zeros([ROWS, DEPTH], tl.float32)
    right = tl.zeros([ROWS, DEPTH], tl.float32)
    mask += batch * hb + (token if BY_TOKEN else rows).to(tl.int64)[:, None] * hr
    for tile in range(first, tl.minimum(last, of_cache)):
        columns = tile * KEYS + tl.arange(0, KEYS)
        present = columns < cached
        reads = present[:, None] & wide
        keys_at = key + columns[:, None] * kn + d[None, :]
        values_at = value + columns[:, None] * vn + d[None, :]
        shown = inside[:, None] & present[None, :]
        if MASKED:
            shown = tl.load(mask + columns[None, :], shown, other=0) != 0
        best, total, left, right = _mix(
            q, r, tl.load(keys_at, reads, other=0.0), tl.load(keys_at + HALF, reads, other=0.0),
            tl.load(values_at, reads, other=0.0), tl.load(values_at + HALF, reads, other=0.0),
            shown, best, total, left, right, scale,
        )  # fmt: skip
    if OWN:
        for tile in range(tl.maximum(first, of_cache), last):
            columns = (tile - of_cache) * KEYS + tl.arange(0, KEYS)
            present = columns < tokens
            reads = present[:, None] & wide
            keys_at = own_key + batch * ob + group * og + columns[:, None] * ot + d[None, :]
            k = tl.load(keys_at, reads, other=0.0)
            l = tl.load(keys_at + HALF, reads, other=0.0)
            if ROTATES:
                k, l = _rotate(k, l, cosine, sine, table + columns[:, None] * HALF + d[None, :], reads)
            values_at = own_value + batch * wb + group * wg + columns[:, None] * wt + d[None, :]
            shown = inside[:, None] & present[None, :]
            if MASKED:
                shown = tl.load(mask + cached + columns[None, :], shown, other=0) != 0
            best, total, left, right = _mix(
                q, r, k, l, tl.load(values_at, reads, other=0.0), tl.load(values_at + HALF, reads, other=0.0),
                shown, best, total, left, right, scale,
            )  # fmt: skip
    into = (split * tl.num_programs(0) + index) * count + rows
    share = parts + into[:, None] * (2 * HALF) + d[None, :]
    tl.store(share, left.to(parts.dtype.element_ty), known)
    tl.store(share + HALF, right.to(parts.dtype.element_ty), known)
    tl.store(best_out + into, best, inside)
    tl.store(total_out + into, total, inside)


@triton.jit
def _combine(
    parts,
    best,
    total,
    out,
    rows,
    tokens,
    count,
    groups,
    heads,
    width,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Weigh the shares of a row, and write it where its token and head are in (B, S, h * E)."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    highest = tl.load(best + row)
    for split in tl.static_range(1, SPLITS):
        highest = tl.maximum(highest, tl.load(best + split * rows + row))
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    sums = 0.0
    mixed = tl.zeros([WIDTH], tl.float32)
    for split in tl.static_range(SPLITS):
        weight = tl.exp2(tl.load(best + split * rows + row) - highest)
        sums += weight * tl.load(total + split * rows + row)
        share = tl.load(parts + (split * rows + row) * width + d, d < width, other=0.0)
        mixed += weight * share.to(tl.float32)
    mixed /= tl.where(sums > 0.0, sums, 1.0)
    group, place = row // count, row % count
    batch, head, token = group // groups, group % groups * (heads // groups) + place // tokens, place % tokens
    into = out + ((batch * tokens + token) * heads + head) * width + d
    tl.store(into, mixed.to(out.dtype.element_ty), d < width)
