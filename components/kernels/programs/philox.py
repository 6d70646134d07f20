"""Triton program of `philox`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_SIZE = 256
"""Number of blocks of four words per program."""


def words(keys, stream, first, blocks):
    out = torch.empty(len(keys), 4 * blocks, dtype=torch.int64, device=keys.device)
    count = len(keys) * blocks
    if count:
        _words[(triton.cdiv(count, _SIZE),)](keys.contiguous(), out, stream, first, blocks, count, SIZE=_SIZE)
    return out


@triton.jit(do_not_specialize=["stream", "first", "blocks", "count"])
def _words(keys, out, stream, first, blocks, count, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < count
    key = tl.load(keys + at // blocks, inside, other=0)
    zeros = tl.zeros_like(at)
    a, b, c, d = tl.philox(key, first + at % blocks, zeros + stream, zeros, zeros)
    into = out + at.to(tl.int64) * 4
    tl.store(into, a.to(tl.int64), inside)
    tl.store(into + 1, b.to(tl.int64), inside)
    tl.store(into + 2, c.to(tl.int64), inside)
    tl.store(into + 3, d.to(tl.int64), inside)
