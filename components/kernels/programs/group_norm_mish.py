"""Triton programs of group norm, Mish and FiLM: one program per group of one sample."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .sums import sum_partials


def forward(x, groups, weight, bias, scale, shift, eps):
    """Implement the reference of `group_norm_mish`."""
    x = x.contiguous()
    samples, channels, steps = x.shape
    out = torch.empty_like(x)
    mean = torch.empty(samples, groups, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    weight, bias, scale, shift = (_rows(y) for y in (weight, bias, scale, shift))
    each = channels // groups
    _forward[(samples, groups)](
        x, weight, bias, *(x if y is None else y for y in (scale, shift)), out, mean, rstd,
        each, steps, *(_stride(y) for y in (scale, shift)), eps, scale is not None, shift is not None,
        **_tile(each, steps),
    )  # fmt: skip
    return out, mean, rstd


def backward(d_out, x, mean, rstd, weight, bias, scale, shift):
    """Implement the reference of the gradients."""
    d_out, x = d_out.contiguous(), x.contiguous()
    samples, channels, steps = x.shape
    groups = mean.shape[1]
    d_x = torch.empty_like(x)
    film = [y for y in (scale, shift) if y is not None]
    d_film = film[0].new_empty((len(film), samples, channels)) if film else x.new_empty(0)
    parts = torch.empty(2, samples, channels, dtype=torch.float32, device=x.device)
    given = iter(d_film)
    d_scale, d_shift = (parts if y is None else next(given) for y in (scale, shift))
    weight, bias, scale, shift = (_rows(y) for y in (weight, bias, scale, shift))
    each = channels // groups
    _backward[(samples, groups)](
        d_out, x, mean, rstd, weight, bias, x if scale is None else scale, d_x, d_scale, d_shift, parts[0], parts[1],
        each, steps, _stride(scale), scale is not None, shift is not None, **_tile(each, steps),
    )  # fmt: skip
    return d_x, d_film, sum_partials(parts, weight.dtype)


def _rows(values):
    """Return the values with a dense last dimension."""
    return values if values is None or values.stride(-1) == 1 else values.contiguous()


def _stride(values):
    return 0 if values is None else values.stride(0)


def _tile(channels, steps):
    rows, columns = triton.next_power_of_2(channels), triton.next_power_of_2(steps)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": min(max(rows * columns // 256, 1), 16)}


@triton.jit
def _gate(z):
    """Return tanh(log(1 + e^z)) and 1 minus its square, as n / (n + 2) with n = e^2z + 2 e^z."""
    e = tl.exp(tl.minimum(z, 20.0))
    n = e * (e + 2.0)
    share = 1.0 / (n + 2.0)
    return n * share, 4.0 * (n + 1.0) * share * share


@triton.jit
def _forward(
    x, weight, bias, scale, shift, out, mean, rstd, channels, steps, scale_stride, shift_stride, eps,
    HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real = rows < channels
    inside = real[:, None] & (columns < steps)[None, :]
    channel = group * channels + rows
    at = (sample * tl.num_programs(1) * channels + channel)[:, None] * steps + columns[None, :]
    values = tl.load(x + at, inside, other=0.0).to(tl.float32)
    count = channels * steps
    average = tl.sum(tl.sum(values, 1), 0) / count
    values = tl.where(inside, values - average, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(tl.sum(values * values, 1), 0) / count + eps)
    tl.store(mean + sample * tl.num_programs(1) + group, average)
    tl.store(rstd + sample * tl.num_programs(1) + group, factor)
    w = tl.load(weight + channel, real, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, real, other=0.0).to(tl.float32)
    z = values * factor * w[:, None] + b[:, None]
    gate, _ = _gate(z)
    y = z * gate
    if HAS_SCALE:
        y *= tl.load(scale + sample * scale_stride + channel, real, other=0.0).to(tl.float32)[:, None]
    if HAS_SHIFT:
        y += tl.load(shift + sample * shift_stride + channel, real, other=0.0).to(tl.float32)[:, None]
    tl.store(out + at, y.to(out.dtype.element_ty), inside)


@triton.jit
def _backward(
    d_out, x, mean, rstd, weight, bias, scale, d_x, d_scale, d_shift, weight_sums, bias_sums,
    channels, steps, scale_stride,
    HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    sample, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real = rows < channels
    inside = real[:, None] & (columns < steps)[None, :]
    channel = group * channels + rows
    place = sample * tl.num_programs(1) * channels + channel
    at = place[:, None] * steps + columns[None, :]
    average = tl.load(mean + sample * tl.num_programs(1) + group)
    factor = tl.load(rstd + sample * tl.num_programs(1) + group)
    normal = (tl.load(x + at, inside, other=0.0).to(tl.float32) - average) * factor
    normal = tl.where(inside, normal, 0.0)
    w = tl.load(weight + channel, real, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, real, other=0.0).to(tl.float32)
    z = normal * w[:, None] + b[:, None]
    gate, slope = _gate(z)
    d = tl.load(d_out + at, inside, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        tl.store(d_shift + place, tl.sum(d, 1).to(d_shift.dtype.element_ty), real)
    if HAS_SCALE:
        tl.store(d_scale + place, tl.sum(d * z * gate, 1).to(d_scale.dtype.element_ty), real)
        d *= tl.load(scale + sample * scale_stride + channel, real, other=0.0).to(tl.float32)[:, None]
    d *= gate + z * slope * tl.sigmoid(z)
    tl.store(weight_sums + place, tl.sum(d * normal, 1), real)
    tl.store(bias_sums + place, tl.sum(d, 1), real)
    d *= w[:, None]
    count = channels * steps
    along = tl.sum(tl.sum(d * normal, 1), 0) / count
    change = (d - tl.sum(tl.sum(d, 1), 0) / count - normal * along) * factor
    tl.store(d_x + at, change.to(d_x.dtype.element_ty), inside)
