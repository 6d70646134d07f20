"""Triton programs of flow matching: one sample a program, and a last one for the sum over samples."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

_BLOCK = 1024


def inputs(actions, noise, level, is_pad, width, noise_at_one, scale, longest, both_ends):
    """What the reference of `noisy_actions` gives."""
    actions, noise, level, is_pad = (x.contiguous() for x in (actions, noise, level, is_pad))
    noisy, target = torch.empty_like(noise), torch.empty_like(noise)
    embedded = torch.empty(len(noise), width, dtype=torch.float32, device=noise.device)
    half = width // 2
    step = -math.log(longest) / (half - 1 if both_ends else half)
    values = noise[0].numel()
    _inputs[(len(noise),)](
        actions, noise, level, is_pad, noisy, target, embedded, values, half, scale, step,
        AT_ONE=noise_at_one, BLOCK=_block(values), HALF=triton.next_power_of_2(half),
    )  # fmt: skip
    return noisy, target, embedded


def loss(predicted, target, is_pad):
    """What the reference of `masked_mse` gives, with the number of values that count."""
    predicted, target, is_pad = (x.contiguous() for x in (predicted, target, is_pad))
    samples = len(predicted)
    values = predicted[0].numel()
    parts = torch.empty(2, samples, dtype=torch.float32, device=predicted.device)
    mean, count = (torch.empty((), dtype=torch.float32, device=predicted.device) for _ in range(2))
    _errors[(samples,)](predicted, target, is_pad, parts, values, samples, BLOCK=_block(values))
    _mean[(1,)](parts, mean, count, samples, BLOCK=_block(samples))
    return mean, count


def loss_gradient(d_loss, predicted, target, is_pad, count):
    """Gradient of the loss for `predicted`."""
    predicted, target, is_pad = (x.contiguous() for x in (predicted, target, is_pad))
    out = torch.empty_like(predicted)
    values = predicted.numel()
    grid = (triton.cdiv(values, _BLOCK),)
    _loss_gradient[grid](d_loss, predicted, target, is_pad, count, out, values, BLOCK=_BLOCK)
    return out


def _block(values):
    return min(triton.next_power_of_2(values), _BLOCK)


@triton.jit
def _inputs(
    actions, noise, level, is_pad, noisy, target, embedded, values, half, scale, step,
    AT_ONE: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    at = tl.load(level + sample)
    for first in range(0, values, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < values
        place = sample * values + columns
        pad = tl.load(is_pad + place, inside, other=1) != 0
        a = tl.load(actions + place, inside & (pad == 0), other=0.0).to(tl.float32)
        e = tl.load(noise + place, inside, other=0.0)
        tl.store(noisy + place, at * e + (1.0 - at) * a, inside)
        tl.store(target + place, (e - a) if AT_ONE else (a - e), inside)
    waves = tl.arange(0, HALF)
    time = at if AT_ONE else 1.0 - at
    angles = (scale * time).to(tl.float64) * tl.exp(step * waves.to(tl.float64))
    angles = angles.to(tl.float32)
    into = embedded + sample * 2 * half + waves
    tl.store(into, tl.sin(angles), waves < half)
    tl.store(into + half, tl.cos(angles), waves < half)


@triton.jit
def _errors(predicted, target, is_pad, parts, values, samples, BLOCK: tl.constexpr):
    """Sum of squares and number of values of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], tl.float32)
    counts = tl.zeros([BLOCK], tl.float32)
    for first in range(0, values, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < values
        place = sample * values + columns
        counted = inside & (tl.load(is_pad + place, inside, other=1) == 0)
        p = tl.load(predicted + place, counted, other=0.0).to(tl.float32)
        error = p - tl.load(target + place, counted, other=0.0)
        squares += error * error
        counts += counted.to(tl.float32)
    tl.store(parts + sample, tl.sum(squares, 0))
    tl.store(parts + samples + sample, tl.sum(counts, 0))


@triton.jit
def _mean(parts, mean, count, samples, BLOCK: tl.constexpr):
    squares = tl.zeros([BLOCK], tl.float32)
    counts = tl.zeros([BLOCK], tl.float32)
    for first in range(0, samples, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        squares += tl.load(parts + columns, columns < samples, other=0.0)
        counts += tl.load(parts + samples + columns, columns < samples, other=0.0)
    number = tl.maximum(tl.sum(counts, 0), 1.0)
    tl.store(mean, tl.sum(squares, 0) / number)
    tl.store(count, number)


@triton.jit
def _loss_gradient(d_loss, predicted, target, is_pad, count, out, values, BLOCK: tl.constexpr):
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < values
    counted = inside & (tl.load(is_pad + columns, inside, other=1) == 0)
    p = tl.load(predicted + columns, counted, other=0.0).to(tl.float32)
    error = p - tl.load(target + columns, counted, other=0.0)
    change = error * (2.0 * tl.load(d_loss) / tl.load(count))
    tl.store(out + columns, change.to(out.dtype.element_ty), inside)
