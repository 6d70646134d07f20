"""Triton programs of the AdamW step: one for the scalars, then one program per chunk of a tensor."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache

import torch
import triton
import triton.language as tl

from ..adamw import same_memory_order
from ..eight_bit import BLOCK
from .eight_bit import decode, encode, rounding_words

_CHUNK = 2048
_KEPT = 8  # tables of distinct sets of tensors
_Table = tuple[torch.Tensor, torch.Tensor, bool]
_tables: OrderedDict[tuple[object, ...], _Table] = OrderedDict()
_captured: dict[tuple[object, ...], _Table] = {}  # read by every replay of a graph


def step(
    parameters, gradients, first, second, averages, shadows, step, rates, decays, groups, clip, found_inf,
    beta1, beta2, eps, average_decay, first_scales, second_scales,
):  # fmt: skip
    """Implement the reference of `adamw`."""
    if not parameters:
        return
    gradients = [_like(gradient, value) for gradient, value in zip(gradients, parameters, strict=True)]
    lists = [x for x in (parameters, first, second, gradients, averages, shadows) if x]
    for others in lists[1:]:
        if not all(map(same_memory_order, others, parameters)):
            raise ValueError("weights, moments, averages and shadows differ in strides")
    lists += [x for x in (first_scales, second_scales) if x]
    addresses, chunks, aligned = _table(lists, groups)
    scalars = torch.empty(4, dtype=torch.float32, device=step.device)
    _scalars[(1,)](step, found_inf, scalars, _log(beta1), _log(beta2), average_decay)
    _steps[(len(chunks),)](
        addresses, chunks, rates, decays, scalars, clip, found_inf, beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps,
        BFLOAT16=gradients[0].dtype == torch.bfloat16, AVERAGE=bool(averages), SHADOW=bool(shadows),
        EIGHT=bool(first_scales), ALIGNED=aligned, COLUMNS=len(lists), CHUNK=_CHUNK, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


def _log(beta):
    return math.log(beta) if beta > 0.0 else -math.inf


def _like(gradient, value):
    """Return the gradient with the strides of its parameter."""
    return gradient if same_memory_order(gradient, value) else torch.empty_like(value).copy_(gradient)


def _table(lists, groups):
    """Return addresses (tensors, lists), chunks (chunks, 4) of tensor, start, size, group, and alignment."""
    pointers = tuple(tuple(x.data_ptr() for x in tensors) for tensors in zip(*lists, strict=True))
    device = lists[0][0].device
    key = (device, pointers, tuple(x.numel() for x in lists[0]), tuple(groups))
    if key in _captured:
        return _captured[key]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        if key not in _tables:
            raise RuntimeError("a captured step must have run on the same tensors before")
        return _captured.setdefault(key, _tables[key])
    if key not in _tables:
        addresses = _to_device(torch.tensor(pointers, dtype=torch.int64), device)
        aligned = all(address % 16 == 0 for row in pointers for address in row)
        _tables[key] = (addresses, _chunks(device, *key[2:]), aligned)
        while len(_tables) > _KEPT:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key]


@lru_cache(maxsize=_KEPT)
def _chunks(device, sizes, groups):
    counts = (torch.tensor(sizes) + _CHUNK - 1) // _CHUNK
    index = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    place = torch.arange(len(index)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    columns = (index, place * _CHUNK, torch.tensor(sizes)[index], torch.tensor(groups)[index])
    return _to_device(torch.stack(columns, dim=1), device)


def _to_device(table, device):
    """Copy the table to the device, without a wait for the host."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit
def _scalars(step, found_inf, scalars, log_beta1, log_beta2, average_decay):
    """Increment the step, and store bias corrections, the weight of the average and the step."""
    now = tl.load(step) + tl.where(tl.load(found_inf) == 0.0, 1.0, 0.0)
    tl.store(step, now)
    exact = now.to(tl.float64)
    tl.store(scalars, 1.0 - tl.exp(exact * log_beta1))
    tl.store(scalars + 1, tl.sqrt((1.0 - tl.exp(exact * log_beta2)).to(tl.float32)))
    tl.store(scalars + 2, 1.0 - tl.minimum((1.0 + now) / (10.0 + now), average_decay))
    tl.store(scalars + 3, now)


@triton.jit
def _at(address, start, kind: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(address).to(tl.pointer_type(kind))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _steps(
    addresses, chunks, rates, decays, scalars, clip, found_inf, beta1, beta2, rest1, rest2, eps,
    BFLOAT16: tl.constexpr, AVERAGE: tl.constexpr, SHADOW: tl.constexpr, EIGHT: tl.constexpr, ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if tl.load(found_inf) == 0.0:
        chunk = chunks + tl.program_id(0) * 4
        tensor = tl.load(chunk)
        row = addresses + tensor * COLUMNS
        start = tl.multiple_of(tl.load(chunk + 1), CHUNK)
        left = tl.load(chunk + 2) - start
        rate = tl.load(rates + tl.load(chunk + 3))
        decay = tl.load(decays + tl.load(chunk + 3))
        if left >= CHUNK:  # without a mask, loads are wide
            _update(
                row, tensor, start, left, rate, decay, scalars, clip, beta1, beta2, rest1, rest2, eps,
                BFLOAT16, AVERAGE, SHADOW, EIGHT, ALIGNED, False, CHUNK, BLOCK,
            )  # fmt: skip
        else:
            _update(
                row, tensor, start, left, rate, decay, scalars, clip, beta1, beta2, rest1, rest2, eps,
                BFLOAT16, AVERAGE, SHADOW, EIGHT, ALIGNED, True, CHUNK, BLOCK,
            )  # fmt: skip


@triton.jit
def _update(
    row, tensor, start, left, rate, decay, scalars, clip, beta1, beta2, rest1, rest2, eps,
    BFLOAT16: tl.constexpr, AVERAGE: tl.constexpr, SHADOW: tl.constexpr, EIGHT: tl.constexpr, ALIGNED: tl.constexpr,
    MASKED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = CHUNK // BLOCK
    if EIGHT:
        columns = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    else:
        columns = tl.arange(0, CHUNK)
    inside = columns < (left if MASKED else CHUNK)
    weights = _at(row, start, tl.float32, ALIGNED) + columns
    if BFLOAT16:
        g = tl.load(_at(row + 3, start, tl.bfloat16, ALIGNED) + columns, inside, 0.0).to(tl.float32)
    else:
        g = tl.load(_at(row + 3, start, tl.float32, ALIGNED) + columns, inside, 0.0)
    g *= tl.load(clip)
    if EIGHT:
        firsts = _at(row + 1, start, tl.uint8, ALIGNED) + columns
        seconds = _at(row + 2, start, tl.uint8, ALIGNED) + columns
        blocks = tl.arange(0, ROWS)
        within = blocks * BLOCK < (left if MASKED else CHUNK)
        scales = row + (4 + AVERAGE + SHADOW)
        first_scales = _at(scales, start // BLOCK, tl.float32, ALIGNED) + blocks
        second_scales = _at(scales + 1, start // BLOCK, tl.float32, ALIGNED) + blocks
        old_m = decode(tl.load(firsts, inside, 0), tl.load(first_scales, within, 0.0), False)
        old_v = decode(tl.load(seconds, inside, 0), tl.load(second_scales, within, 0.0), True)
    else:
        firsts = _at(row + 1, start, tl.float32, ALIGNED) + columns
        seconds = _at(row + 2, start, tl.float32, ALIGNED) + columns
        old_m, old_v = tl.load(firsts, inside), tl.load(seconds, inside)
    m = beta1 * old_m + rest1 * g
    v = beta2 * old_v + rest2 * g * g
    size = tl.sqrt_rn(v) / tl.load(scalars + 1) + eps
    w = tl.load(weights, inside) * (1.0 - rate * decay) - (rate / tl.load(scalars)) * tl.div_rn(m, size)
    if EIGHT:
        words = rounding_words(tl.load(scalars + 3), tensor, start, ROWS)
        first, first_scale = encode(m, words, False)
        second, second_scale = encode(v, words, True)
        tl.store(firsts, first, inside)
        tl.store(seconds, second, inside)
        tl.store(first_scales, first_scale, within)
        tl.store(second_scales, second_scale, within)
    else:
        tl.store(firsts, m, inside)
        tl.store(seconds, v, inside)
    tl.store(weights, w, inside)
    if AVERAGE:
        averages = _at(row + 4, start, tl.float32, ALIGNED) + columns
        a = tl.load(averages, inside)
        tl.store(averages, a + tl.load(scalars + 2) * (w - a), inside)
    if SHADOW:
        shadows = _at(row + (5 if AVERAGE else 4), start, tl.bfloat16, ALIGNED) + columns
        tl.store(shadows, w.to(tl.bfloat16), inside)
