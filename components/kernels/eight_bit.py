"""Numbers in eight bits: blocks of 256 with one power of two each, for the moments of AdamW.

    m = scale c        c: a sign, 4 bits of exponent, 3 of mantissa     |m| over a range of 2^17 in a block
    v = (scale c)^2    c: no sign, 4 bits of exponent, 4 of mantissa      v over a range of 2^37

Codes are those of float8 e4m3 (Micikevicius et al., 2022) without NaN; for v, the sign bit extends the
mantissa. Blocks are as in Dettmers et al. (2022). A scale is the smallest power of two for which the largest
number of a block does not exceed the largest code, bounded below so that all codes represent normal float32
numbers. Decoding is therefore exact, and encoding a decoded number reproduces it under any rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .philox import philox

BLOCK = 256
_SMALLEST = 4096
"""Size of a weight from which its moments are stored in eight bits."""
_BIAS = 120
"""Exponent 0 of a code in float32; numbers below 2^-6 are multiples of a smallest one."""
_INFINITE = 0x7F800000
_LOWEST = {False: 10 << 23, True: 74 << 23}
"""Smallest scales, 2^-117 and 2^-53, as bits of float32."""


def coded(part: Tensor, *, eight_bit: bool) -> bool:
    """Return whether the moments of a weight, or of its part in this process, are stored in eight bits."""
    return eight_bit and part.numel() >= _SMALLEST


def moment_bytes(parts: Iterable[Tensor], *, eight_bit: bool) -> int:
    """Return the bytes of both moments of weights."""
    return sum(
        2 * (part.numel() + 4 * -(-part.numel() // BLOCK))
        if coded(part, eight_bit=eight_bit)
        else 8 * part.numel()
        for part in parts
    )


def encode(values: Tensor, words: Tensor | None = None, *, squared: bool) -> tuple[Tensor, Tensor]:
    """Encode values (n,), float32, as codes (n,), uint8, and scales (blocks,), float32.

    Rounds to nearest, or by `words`, 32 random bits (n,), int64, up or down, so that the mean of m, or of
    sqrt(v), is exact to 2^-17 of a step. `squared` selects v, which is not negative and whose nonzero values
    do not become 0. Infinite values and NaN make their whole block NaN.
    """
    mantissa, shift = _bits(squared)
    bits = (values.sqrt() if squared else values).view(torch.int32)
    sizes = bits & 0x7FFFFFFF
    largest = torch.nn.functional.pad(sizes, (0, -len(sizes) % BLOCK)).view(-1, BLOCK).amax(1)
    exponents = ((largest + (1 << shift) - 1) & _INFINITE) - (8 << 23)
    scales = exponents.clamp_min(_LOWEST[squared]).view(torch.float32)
    scales = torch.where(largest < _INFINITE, scales, torch.nan)
    ratios = sizes.view(torch.float32) * _spread(1.0 / scales, len(sizes))
    small = ratios < 2.0**-6
    above = torch.where(small, ratios + 2.0**-6, ratios).view(torch.int32) + _noise(words, squared)
    codes = (above >> shift) - (_BIAS + small.int() << mantissa)
    codes = codes.clamp(0, (16 << mantissa) - 1)
    codes = torch.maximum(codes, (sizes > 0).int()) if squared else codes | (bits < 0).int() << 7
    return codes.to(torch.uint8), scales


def decode(codes: Tensor, scales: Tensor, *, squared: bool) -> Tensor:
    """Decode codes (n,), uint8, and scales (blocks,), float32, to values (n,), float32."""
    mantissa, shift = _bits(squared)
    wide = codes.int()
    sizes = wide if squared else wide & 0x7F
    small = sizes < 1 << mantissa
    above = (sizes + (_BIAS + small.int() << mantissa) << shift).view(torch.float32)
    values = torch.where(small, above - 2.0**-6, above) * _spread(scales, len(codes))
    return values * values if squared else torch.where(wide < 128, values, -values)


def rounding_words(step: Tensor, tensor: int, count: int) -> Tensor:
    """Return random bits, int64 (count,) below 2^32, for a tensor's number and a step, a float32 scalar."""
    fours = torch.arange(-(-count // 4), device=step.device)
    now = step.to(torch.int64).expand_as(fours)
    words = philox(0, (fours, torch.full_like(fours, tensor), now, torch.zeros_like(fours)))
    return words.flatten()[:count]


def _bits(squared: bool) -> tuple[int, int]:
    """Return the numbers of kept and of dropped bits of the mantissa."""
    return (4, 19) if squared else (3, 20)


def _noise(words: Tensor | None, squared: bool) -> Tensor | int:
    """Return the number to add below the mantissa before truncation, one half of a word each for m and v."""
    _, shift = _bits(squared)
    if words is None:
        return 1 << (shift - 1)
    halves = words & 0xFFFF if squared else words >> 16
    return (halves.int() << (shift - 16)) + (1 << (shift - 17))


def _spread(scales: Tensor, count: int) -> Tensor:
    return scales.repeat_interleave(BLOCK)[:count]
