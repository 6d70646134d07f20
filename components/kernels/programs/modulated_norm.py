"""Triton programs of the modulated norm: a row per program forward, rows of one sample backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .sums import sum_partials

_PROGRAMS = 256  # backwards: enough to fill a GPU, and few partial sums


def forward(residual, branch, gate, shift, scale, weight, bias, rms, eps):
    """Implement the reference of `modulated_norm`."""
    samples, tokens, width = residual.shape
    residual, branch = residual.contiguous(), None if branch is None else branch.contiguous()
    dtype = residual.dtype if branch is None else torch.promote_types(residual.dtype, branch.dtype)
    out = torch.empty(residual.shape, dtype=dtype, device=residual.device)
    hidden = residual.new_empty(0) if branch is None else torch.empty_like(out)
    rstd = torch.empty(samples, tokens, dtype=torch.float32, device=residual.device)
    mean = rstd.new_empty(0) if rms else torch.empty_like(rstd)
    gate, shift, scale, weight, bias = (rows_of(x) for x in (gate, shift, scale, weight, bias))
    block = triton.next_power_of_2(width)
    _forward[(samples * tokens,)](
        residual, *(out if x is None else x for x in (branch, gate, shift, scale, weight, bias)),
        hidden, out, mean, rstd, tokens, width, *(stride_of(x) for x in (gate, shift, scale)), eps,
        *(x is not None for x in (branch, gate, shift, scale, weight, bias)), rms, block,
        num_warps=warps_of(block),
    )  # fmt: skip
    return hidden, out, mean, rstd


def backward(d_out, d_hidden, hidden, mean, rstd, branch, gate, shift, scale, weight, bias):
    """Implement the reference of the gradients."""
    samples, tokens, width = hidden.shape
    splits = min(tokens, max(_PROGRAMS // samples, 1))
    rows = triton.cdiv(tokens, splits)
    splits = triton.cdiv(tokens, rows)
    d_out, d_hidden, hidden, branch = (
        None if x is None else x.contiguous() for x in (d_out, d_hidden, hidden, branch)
    )
    change = torch.empty_like(hidden)
    d_branch = hidden.new_empty(0) if gate is None else torch.empty_like(hidden)
    modulation = [x for x in (shift, scale, gate) if x is not None]
    parameters = [x for x in (weight, bias) if x is not None]
    parts = torch.empty(
        len(modulation), samples, splits, width, device=hidden.device,
        dtype=modulation[0].dtype if modulation and splits == 1 else torch.float32,
    )  # fmt: skip
    affine_parts = parts.new_empty(len(parameters), samples * splits, width, dtype=torch.float32)
    sums, affine_sums = iter(parts), iter(affine_parts)
    into = [parts if x is None else next(sums) for x in (shift, scale, gate)]
    into += [parts if x is None else next(affine_sums) for x in (weight, bias)]
    present = [x is not None for x in (d_hidden, gate, shift, scale, weight, bias)]
    gate, scale, weight, bias = (rows_of(x) for x in (gate, scale, weight, bias))
    block = triton.next_power_of_2(width)
    _backward[(samples, splits)](
        d_out, hidden if d_hidden is None else d_hidden, hidden, mean, rstd,
        *(hidden if x is None else x for x in (branch, gate, scale, weight, bias)), change, d_branch, *into,
        tokens, width, rows, stride_of(gate), stride_of(scale), *present, mean.numel() == 0, block,
        num_warps=warps_of(block),
    )  # fmt: skip
    total = hidden.new_empty(0)
    if modulation:
        flat = parts.flatten(0, 1)
        total = flat.squeeze(1) if splits == 1 else sum_partials(flat, modulation[0].dtype)
        total = total.unflatten(0, (-1, samples))
    affine_total = sum_partials(affine_parts, parameters[0].dtype) if parameters else hidden.new_empty(0)
    return change, d_branch, total, affine_total


def rows_of(values):
    """Return the values with a dense last dimension."""
    return values if values is None or values.stride(-1) == 1 else values.contiguous()


def stride_of(values):
    return 0 if values is None else values.stride(0)


def warps_of(block):
    return min(max(block // 256, 1), 16)


@triton.jit
def _forward(
    residual,
    branch,
    gate,
    shift,
    scale,
    weight,
    bias,
    hidden,
    out,
    mean,
    rstd,
    tokens,
    width,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    HAS_BRANCH: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute a row of `hidden` and `out` (B * N, D), and its `mean` and `rstd` (B * N)."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    x = tl.load(residual + at, inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        y = tl.load(branch + at, inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            y = y * tl.load(gate + sample * gate_stride + columns, inside, other=0.0).to(tl.float32)
        rounded = (x + y).to(hidden.dtype.element_ty)
        tl.store(hidden + at, rounded, inside)
        x = rounded.to(tl.float32)
    if not RMS:
        average = tl.sum(x, 0) / width
        x = tl.where(inside, x - average, 0.0)
        tl.store(mean + row, average)
    factor = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    tl.store(rstd + row, factor)
    normal = x * factor
    if HAS_WEIGHT:
        normal = normal * tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        normal = normal + tl.load(bias + columns, inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        by = tl.load(scale + sample * scale_stride + columns, inside, other=0.0).to(tl.float32)
        normal = normal * (1.0 + by)
    if HAS_SHIFT:
        normal = normal + tl.load(shift + sample * shift_stride + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + at, normal.to(out.dtype.element_ty), inside)


@triton.jit
def _backward(
    d_out,
    d_hidden,
    hidden,
    mean,
    rstd,
    branch,
    gate,
    scale,
    weight,
    bias,
    d_residual,
    d_branch,
    shift_sums,
    scale_sums,
    gate_sums,
    weight_sums,
    bias_sums,
    tokens,
    width,
    rows,
    gate_stride,
    scale_stride,
    HAS_D_HIDDEN: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradients of `rows` rows of one sample, and their share of the sums (B, splits, D)."""
    sample = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    affine = tl.full([BLOCK], 1.0, tl.float32)
    offset = tl.zeros([BLOCK], tl.float32)
    modulation = tl.full([BLOCK], 1.0, tl.float32)
    opening = tl.zeros([BLOCK], tl.float32)
    if HAS_WEIGHT:
        affine = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + columns, inside, other=0.0).to(tl.float32)
    if HAS_SCALE:
        modulation += tl.load(scale + sample * scale_stride + columns, inside, other=0.0).to(tl.float32)
    if HAS_GATE:
        opening = tl.load(gate + sample * gate_stride + columns, inside, other=0.0).to(tl.float32)
    to_shift = tl.zeros([BLOCK], tl.float32)
    to_scale = tl.zeros([BLOCK], tl.float32)
    to_gate = tl.zeros([BLOCK], tl.float32)
    to_weight = tl.zeros([BLOCK], tl.float32)
    to_bias = tl.zeros([BLOCK], tl.float32)
    first = split * rows
    for token in range(first, tl.minimum(first + rows, tokens)):
        row = sample * tokens + token
        at = row * width + columns
        x = tl.load(hidden + at, inside, other=0.0).to(tl.float32)
        d = tl.load(d_out + at, inside, other=0.0).to(tl.float32)
        factor = tl.load(rstd + row)
        if not RMS:
            x = tl.where(inside, x - tl.load(mean + row), 0.0)
        x *= factor
        if HAS_SHIFT:
            to_shift += d
        if HAS_SCALE:
            to_scale += d * (x * affine + offset)
        d *= modulation
        if HAS_BIAS:
            to_bias += d
        if HAS_WEIGHT:
            to_weight += d * x
        d *= affine
        change = d - x * (tl.sum(d * x, 0) / width)
        if not RMS:
            change -= tl.sum(d, 0) / width
        change *= factor
        if HAS_D_HIDDEN:
            change += tl.load(d_hidden + at, inside, other=0.0).to(tl.float32)
        tl.store(d_residual + at, change.to(d_residual.dtype.element_ty), inside)
        if HAS_GATE:
            tl.store(d_branch + at, (change * opening).to(d_branch.dtype.element_ty), inside)
            to_gate += change * tl.load(branch + at, inside, other=0.0).to(tl.float32)
    into = (sample * tl.num_programs(1) + split) * width + columns
    if HAS_SHIFT:
        tl.store(shift_sums + into, to_shift.to(shift_sums.dtype.element_ty), inside)
    if HAS_SCALE:
        tl.store(scale_sums + into, to_scale.to(scale_sums.dtype.element_ty), inside)
    if HAS_GATE:
        tl.store(gate_sums + into, to_gate.to(gate_sums.dtype.element_ty), inside)
    if HAS_WEIGHT:
        tl.store(weight_sums + into, to_weight.to(weight_sums.dtype.element_ty), inside)
    if HAS_BIAS:
        tl.store(bias_sums + into, to_bias.to(bias_sums.dtype.element_ty), inside)
