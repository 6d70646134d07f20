"""Triton programs of products of few rows: a tile of the weight's rows and a share of its columns each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch import INTERPRETED
from ..few_rows import COLUMNS, INNER, tiles_of_share
from .modulated_norm import rows_of, stride_of, warps_of

_WIDENS = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bits of bfloat16
_GATED = {"COLUMNS": 32, "INNER": 128, "num_stages": 4, "num_warps": 4}


def linear(values, weight):
    """Implement the reference of `linear`."""
    out = torch.empty(*values.shape[:-1], len(weight), dtype=values.dtype, device=values.device)
    return _multiply(values, weight, out, triton.cdiv(weight.shape[1], INNER))


def parts(values, weight):
    """Implement the reference of `linear_parts`."""
    each = tiles_of_share(weight)
    shares = triton.cdiv(weight.shape[1], INNER * each)
    out = torch.empty(shares, *values.shape[:-1], len(weight), dtype=torch.float32, device=values.device)
    return _multiply(values, weight, out, each)


def _multiply(values, weight, out, each):
    values, weight = values.contiguous(), weight.contiguous()
    columns, inner = weight.shape
    rows, shares = values.numel() // inner, triton.cdiv(inner, INNER * each)
    _parts[(triton.cdiv(columns, COLUMNS), shares)](
        values, weight, out, rows, columns, inner, each,
        WHOLE=columns % COLUMNS == 0 and inner % INNER == 0, ROWS=_tile(rows), COLUMNS=COLUMNS, INNER=INNER,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return out


def gated(values, both, silu):
    """Implement the reference of `gated_linear`."""
    values, both = values.contiguous(), both.contiguous()
    columns, inner = len(both) // 2, both.shape[1]
    rows = values.numel() // inner
    out = torch.empty(*values.shape[:-1], columns, dtype=values.dtype, device=values.device)
    _gated[(triton.cdiv(columns, _GATED["COLUMNS"]),)](
        values, both, out, rows, columns, inner, SILU=silu,
        WHOLE=columns % _GATED["COLUMNS"] == 0 and inner % _GATED["INNER"] == 0, ROWS=_tile(rows), **_GATED,
    )  # fmt: skip
    return out


def norm(residual, shares, bias, gate, shift, scale, weight, rms, eps):
    """Implement the reference of `summed_norm`."""
    samples, tokens, width = residual.shape
    residual, shares = residual.contiguous(), shares.contiguous()
    hidden, out = torch.empty_like(residual), torch.empty_like(residual)
    gate, shift, scale = (rows_of(x) for x in (gate, shift, scale))
    block = triton.next_power_of_2(width)
    _norm[(samples * tokens,)](
        residual, shares, *(out if x is None else x for x in (bias, gate, shift, scale, weight)), hidden, out,
        samples * tokens, tokens, width, *(stride_of(x) for x in (gate, shift, scale)), eps,
        *(x is not None for x in (bias, gate, shift, scale, weight)), rms, len(shares), block,
        num_warps=warps_of(block),
    )  # fmt: skip
    return hidden, out


def _tile(rows):
    return max(16, triton.next_power_of_2(rows))


@triton.jit
def _dot(left, right, sums):
    if _WIDENS:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def _read(values, rows, count, columns, width, WHOLE: tl.constexpr):
    at = values + rows[:, None].to(tl.int64) * width + columns[None, :]
    if WHOLE:
        found = tl.load(at)
    else:
        found = tl.load(at, (rows < count)[:, None] & (columns < width)[None, :], other=0.0)
    return found


@triton.jit
def _parts(
    values, weight, out, rows, columns, inner, each,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Multiply the rows by a tile of columns, over `each` tiles of the inner dimension."""
    share = tl.program_id(1)
    r = tl.arange(0, ROWS)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    first, last = share * each, tl.minimum((share + 1) * each, tl.cdiv(inner, INNER))
    for tile in range(first, last):
        k = tile * INNER + tl.arange(0, INNER)
        x = _read(values, r, rows, k, inner, False)
        w = _read(weight, c, columns, k, inner, WHOLE)
        sums = _dot(x, tl.trans(w), sums)
    at = out + (share * rows + r)[:, None].to(tl.int64) * columns + c[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), (r < rows)[:, None] & (c < columns)[None, :])


@triton.jit
def _gated(
    values, both, out, rows, columns, inner, SILU: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Multiply the rows by tiles of gate and up, and combine both."""
    r = tl.arange(0, ROWS)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = both + columns.to(tl.int64) * inner
    for tile in range(tl.cdiv(inner, INNER)):
        k = tile * INNER + tl.arange(0, INNER)
        x = _read(values, r, rows, k, inner, False)
        gate = _dot(x, tl.trans(_read(both, c, columns, k, inner, WHOLE)), gate)
        up = _dot(x, tl.trans(_read(second, c, columns, k, inner, WHOLE)), up)
    gate, up = gate.to(out.dtype.element_ty).to(tl.float32), up.to(out.dtype.element_ty).to(tl.float32)
    if SILU:
        share = tl.sigmoid(gate)
    else:
        share = tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    at = out + r[:, None] * columns + c[None, :]
    tl.store(at, (gate * share * up).to(out.dtype.element_ty), (r < rows)[:, None] & (c < columns)[None, :])


@triton.jit
def _norm(
    residual, parts, bias, gate, shift, scale, weight, hidden, out, rows, tokens, width,
    gate_stride, shift_stride, scale_stride, eps,
    HAS_BIAS: tl.constexpr, HAS_GATE: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, RMS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute a row of `hidden` and `out` (B * N, D)."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    y = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        y += tl.load(parts + part * rows * width + at, inside, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + columns, inside, other=0.0).to(tl.float32)
    if HAS_GATE:
        y *= tl.load(gate + sample * gate_stride + columns, inside, other=0.0).to(tl.float32)
    x = tl.load(residual + at, inside, other=0.0).to(tl.float32) + y
    rounded = x.to(hidden.dtype.element_ty)
    tl.store(hidden + at, rounded, inside)
    x = rounded.to(tl.float32)
    if not RMS:
        x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    normal = x * (1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps))
    if HAS_WEIGHT:
        normal *= tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        by = tl.load(scale + sample * scale_stride + columns, inside, other=0.0).to(tl.float32)
        normal = normal * (1.0 + by)
    if HAS_SHIFT:
        normal += tl.load(shift + sample * shift_stride + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + at, normal.to(out.dtype.element_ty), inside)
