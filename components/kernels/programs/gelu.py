"""Triton programs of bias, GELU and dropout."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .sums import sum_partials

_PROGRAMS = 1056  # backwards: enough to fill a GPU, and few partial sums


def forward(values, bias, seed, tanh, dropped):
    """Implement the reference of `gelu`."""
    values = values.contiguous()
    width = values.shape[-1]
    rows = values.numel() // width
    out = torch.empty_like(values)
    high, wide = 8, 512
    _forward[(triton.cdiv(rows, high), triton.cdiv(width, wide))](
        values, bias.contiguous(), bias if seed is None else seed, out, rows, width, tanh, _drops(seed, dropped),
        ROWS=high, COLUMNS=wide, num_warps=4,
    )  # fmt: skip
    return out


def backward(d_out, values, bias, seed, tanh, dropped):
    """Implement the reference of the gradients."""
    d_out, values = d_out.contiguous(), values.contiguous()
    width = values.shape[-1]
    rows = values.numel() // width
    drops = _drops(seed, dropped)
    high, wide = (8, 128) if drops else (4, 256)
    across = triton.cdiv(width, wide)
    splits = max(min(triton.cdiv(rows, high), _PROGRAMS // across), 1)
    each = max(triton.cdiv(triton.cdiv(rows, splits), high), 1) * high
    splits = max(triton.cdiv(rows, each), 1)
    change = torch.empty_like(values)
    sums = torch.empty(1, splits, width, dtype=torch.float32, device=values.device)
    _backward[(splits, across)](
        d_out, values, bias.contiguous(), bias if seed is None else seed, change, sums, rows, width, each, tanh,
        drops, ROWS=high, COLUMNS=wide, num_warps=4 if drops else 8,
    )  # fmt: skip
    return change, sum_partials(sums, bias.dtype)[0]


def _drops(seed, dropped):
    return 0 if seed is None else dropped


@triton.jit
def _passed(x, TANH: tl.constexpr):
    """Return the share of x that passes, and the slope of the share.

    With `tanh` it is 1 / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3). Otherwise it is the normal
    distribution function, whose tail over its density is a polynomial in t = 1 / (1 + 0.38 |x| / sqrt(2)),
    fitted by weighted least squares of the relative error.
    """
    if TANH:
        share = 1.0 / (1.0 + tl.exp2(-2.302208198144325 * x * (1.0 + 0.044715 * x * x)))
        slope = share * (1.0 - share) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        # erfc(|x| / sqrt(2)) / exp(-x^2 / 2), to a relative error of 1.1e-6 up to |x| = 19
        bell = tl.exp2(-0.7213475204444817 * x * x)
        t = 1.0 / (1.0 + 0.2687005768508881 * tl.abs(x))
        tail = -0.1254148561712573
        tail = tail * t + 0.3360268521938761
        tail = tail * t - 0.06989999002098998
        tail = tail * t + 0.24782496089635864
        tail = tail * t + 0.18059791226263133
        tail = tail * t + 0.21657672497934455
        tail = tail * t + 0.21428736399846965
        tail *= 0.5 * t * bell
        share = tl.where(x < 0, tail, 1.0 - tail)
        slope = 0.3989422804014327 * bell
    return share, slope


@triton.jit
def _kept(seed, row, column, width, DROPPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the factors of values by dropout, from sixteen bits of Philox each, (ROWS, COLUMNS)."""
    group = row.to(tl.int32)[:, None] * ((width + 7) // 8) + column // 8 + tl.arange(0, COLUMNS // 8)[None, :]
    zeros = tl.zeros_like(group)
    a, b, c, d = tl.philox(tl.load(seed), group, zeros, zeros, zeros)
    words = tl.join(tl.join(a, c), tl.join(b, d)).to(tl.uint32, bitcast=True)
    halves = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [ROWS, COLUMNS])
    return tl.where(halves >= DROPPED, 65536.0 / (65536.0 - DROPPED), 0.0)


@triton.jit
def _forward(
    values, bias, seed, out, rows, width,
    TANH: tl.constexpr, DROPPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    x = tl.load(values + at, inside, other=0.0).to(tl.float32)
    x += tl.load(bias + column, column < width, other=0.0).to(tl.float32)[None, :]
    share, _ = _passed(x, TANH)
    y = x * share
    if DROPPED > 0:
        y *= _kept(seed, row, first, width, DROPPED, ROWS, COLUMNS)
    tl.store(out + at, y.to(out.dtype.element_ty), inside)


@triton.jit
def _backward(
    d_out, values, bias, seed, change, sums, rows, width, each,
    TANH: tl.constexpr, DROPPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    across = column < width
    shift = tl.load(bias + column, across, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, each, ROWS):
        row = split * each + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & across[None, :]
        at = row[:, None] * width + column[None, :]
        x = tl.load(values + at, inside, other=0.0).to(tl.float32) + shift
        d = tl.load(d_out + at, inside, other=0.0).to(tl.float32)
        if DROPPED > 0:
            d *= _kept(seed, row, first, width, DROPPED, ROWS, COLUMNS)
        share, slope = _passed(x, TANH)
        d *= share + x * slope
        tl.store(change + at, d.to(change.dtype.element_ty), inside)
        total += d
    tl.store(sums + split * width + column, tl.sum(total, 0), across)
