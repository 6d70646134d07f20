"""Sum over the middle dimension in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _ROWS = 128, 16


def sum_partials(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum partial sums (K, S, D), float32, to (K, D) in `dtype`."""
    count, splits, width = parts.shape
    out = torch.empty(count, width, dtype=dtype, device=parts.device)
    grid = (count, triton.cdiv(width, _COLUMNS))
    _sum_partials[grid](parts, out, splits, width, ROWS=_ROWS, COLUMNS=_COLUMNS)
    return out


@triton.jit
def _sum_partials(parts, out, splits, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    index = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, splits, ROWS):
        rows = first + tl.arange(0, ROWS)
        at = (index * splits + rows[:, None]) * width + columns[None, :]
        total += tl.sum(tl.load(parts + at, (rows < splits)[:, None] & inside[None, :], other=0.0), 0)
    tl.store(out + index * width + columns, total.to(out.dtype.element_ty), inside)
