"""Triton programs of attention to a cache: rows of a group and a share of the keys per program, then the sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch import INTERPRETED

_LOG2E = tl.constexpr(1.4426950408889634)
_WIDENS = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bits of bfloat16
_PROGRAMS = 132  # enough to fill a GPU
ROWS, KEYS, WARPS, STAGES = 32, 64, 4, 2


def forward(query, model, keys, values, cosine, sine, mask, scale):
    """Compute what the reference of `cached_attention` returns."""
    batch, tokens, heads, width = query.shape
    groups, cached = model.shape[2:4]
    query, model, keys, values = (
        x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (query, model, keys, values)
    )
    cosine, sine, mask = (None if x is None else x.contiguous() for x in (cosine, sine, mask))
    count = heads // groups * tokens
    of_model = triton.cdiv(cached, KEYS)
    tiles = of_model + (0 if keys is None else triton.cdiv(tokens, KEYS))
    blocks = triton.cdiv(count, ROWS)
    per = triton.cdiv(tiles, max(1, min(tiles, _PROGRAMS // (batch * groups * blocks))))
    splits = triton.cdiv(tiles, per)
    out = torch.empty(batch, tokens, heads * width, dtype=query.dtype, device=query.device)
    rows = batch * groups * count
    parts = torch.empty(splits, rows, width, dtype=torch.float32, device=query.device)
    best, total = torch.empty(2, splits, rows, dtype=torch.float32, device=query.device)
    own = (query if keys is None else keys), (query if values is None else values)
    _attend[(batch * groups, blocks, splits)](
        query, model, *own, *(query if x is None else x for x in (cosine, sine, mask)),
        parts, best, total, scale * _LOG2E.value,
        tokens, cached, cached + (0 if keys is None else tokens), count, groups, heads // groups, per, of_model,
        tiles, *query.stride()[:3], *model.stride()[:4], *own[0].stride()[:3], *own[1].stride()[:3],
        0 if mask is None or len(mask) == 1 else mask.stride(0),
        HALF=width // 2, OWN=keys is not None, ROTATES=cosine is not None, MASKED=mask is not None,
        ROWS=ROWS, KEYS=KEYS, DEPTH=max(16, triton.next_power_of_2(width // 2)),
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    _combine[(rows,)](
        parts, best, total, out, rows, splits, tokens, count, groups, heads, width,
        SPLITS=triton.next_power_of_2(splits), WIDTH=triton.next_power_of_2(width), num_warps=2,
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
    query, model, own_key, own_value, cosine, sine, mask, parts, best_out, total_out, scale,
    tokens, cached, seen, count, groups, shared, per, of_model, tiles,
    qb, qt, qh, mb, mp, mg, mn, kb, kt, kg, vb, vt, vg, hidden_stride,
    HALF: tl.constexpr, OWN: tl.constexpr, ROTATES: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DEPTH: tl.constexpr,
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
    at = query + batch * qb + head[:, None] * qh + token[:, None] * qt + d[None, :]
    q = tl.load(at, known, other=0.0)
    r = tl.load(at + HALF, known, other=0.0)
    table = batch * tokens * HALF
    if ROTATES:
        q, r = _rotate(q, r, cosine, sine, table + token[:, None] * HALF + d[None, :], known)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    left = tl.zeros([ROWS, DEPTH], tl.float32)
    right = tl.zeros([ROWS, DEPTH], tl.float32)
    mask += batch * hidden_stride + rows.to(tl.int64)[:, None] * seen
    first, last = split * per, tl.minimum((split + 1) * per, tiles)
    base = model + batch * mb + group * mg
    for tile in range(first, tl.minimum(last, of_model)):
        columns = tile * KEYS + tl.arange(0, KEYS)
        present = columns < cached
        reads = present[:, None] & wide
        at = base + columns[:, None] * mn + d[None, :]
        shown = inside[:, None] & present[None, :]
        if MASKED:
            shown = tl.load(mask + columns[None, :], shown, other=0) != 0
        best, total, left, right = _mix(
            q, r, tl.load(at, reads, other=0.0), tl.load(at + HALF, reads, other=0.0),
            tl.load(at + mp, reads, other=0.0), tl.load(at + mp + HALF, reads, other=0.0),
            shown, best, total, left, right, scale,
        )  # fmt: skip
    if OWN:
        for tile in range(tl.maximum(first, of_model), last):
            columns = (tile - of_model) * KEYS + tl.arange(0, KEYS)
            present = columns < tokens
            reads = present[:, None] & wide
            at = own_key + batch * kb + group * kg + columns[:, None] * kt + d[None, :]
            k = tl.load(at, reads, other=0.0)
            l = tl.load(at + HALF, reads, other=0.0)
            if ROTATES:
                k, l = _rotate(k, l, cosine, sine, table + columns[:, None] * HALF + d[None, :], reads)
            at = own_value + batch * vb + group * vg + columns[:, None] * vt + d[None, :]
            shown = inside[:, None] & present[None, :]
            if MASKED:
                shown = tl.load(mask + cached + columns[None, :], shown, other=0) != 0
            best, total, left, right = _mix(
                q, r, k, l, tl.load(at, reads, other=0.0), tl.load(at + HALF, reads, other=0.0),
                shown, best, total, left, right, scale,
            )  # fmt: skip
    into = (split * tl.num_programs(0) + index) * count + rows
    at = parts + into[:, None] * (2 * HALF) + d[None, :]
    tl.store(at, left, known)
    tl.store(at + HALF, right, known)
    tl.store(best_out + into, best, inside)
    tl.store(total_out + into, total, inside)


@triton.jit
def _combine(
    parts, best, total, out, rows, splits, tokens, count, groups, heads, width,
    SPLITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Weigh the shares of a row, and write it where its token and head are in (B, S, h * E)."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, WIDTH)
    there = split < splits
    scores = tl.load(best + split * rows + row, there, other=float("-inf"))
    highest = tl.max(scores, 0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - highest)
    sums = tl.sum(weights * tl.load(total + split * rows + row, there, other=0.0), 0)
    at = parts + (split[:, None] * rows + row) * width + d[None, :]
    found = tl.load(at, there[:, None] & (d < width)[None, :], other=0.0)
    mixed = tl.sum(found * weights[:, None], 0) / tl.where(sums > 0.0, sums, 1.0)
    group, place = row // count, row % count
    batch, head, token = group // groups, group % groups * (heads // groups) + place // tokens, place % tokens
    into = out + ((batch * tokens + token) * heads + head) * width + d
    tl.store(into, mixed.to(out.dtype.element_ty), d < width)
