"""The functions of `eight_bit` on rows of 256 numbers, for other Triton programs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decode(codes, scales, SQUARED: tl.constexpr):
    """Decode codes (R, 256) and scales (R,) to values (R, 256), float32."""
    MANTISSA: tl.constexpr = 4 if SQUARED else 3
    wide = codes.to(tl.int32)
    sizes = wide if SQUARED else wide & 0x7F
    small = sizes < (1 << MANTISSA)
    fields = sizes + ((120 + small.to(tl.int32)) << MANTISSA)
    above = (fields << (23 - MANTISSA)).to(tl.float32, bitcast=True)
    values = tl.where(small, above - 0.015625, above) * scales[:, None]
    return values * values if SQUARED else tl.where(wide < 128, values, -values)


@triton.jit
def encode(values, words, SQUARED: tl.constexpr):
    """Encode values (R, 256), float32, with random words, uint32, to codes (R, 256) and scales (R,)."""
    MANTISSA: tl.constexpr = 4 if SQUARED else 3
    SHIFT: tl.constexpr = 23 - MANTISSA
    LOWEST: tl.constexpr = 74 << 23 if SQUARED else 10 << 23
    bits = (tl.sqrt_rn(values) if SQUARED else values).to(tl.int32, bitcast=True)
    sizes = bits & 0x7FFFFFFF
    largest = tl.max(sizes, 1)
    exponents = tl.maximum(((largest + ((1 << SHIFT) - 1)) & 0x7F800000) - (8 << 23), LOWEST)
    scales = tl.where(largest < 0x7F800000, exponents.to(tl.float32, bitcast=True), float("nan"))
    ratios = (
        sizes.to(tl.float32, bitcast=True)
        * tl.div_rn(tl.full(scales.shape, 1.0, tl.float32), scales)[:, None]
    )
    small = ratios < 0.015625
    halves = (words & 0xFFFF if SQUARED else words >> 16).to(tl.int32)
    noise = (halves << (SHIFT - 16)) + (1 << (SHIFT - 17))
    above = tl.where(small, ratios + 0.015625, ratios).to(tl.int32, bitcast=True) + noise
    codes = (above >> SHIFT) - ((120 + small.to(tl.int32)) << MANTISSA)
    codes = tl.minimum(tl.maximum(codes, 0), (16 << MANTISSA) - 1)
    codes = tl.maximum(codes, (sizes > 0).to(tl.int32)) if SQUARED else codes | ((bits < 0).to(tl.int32) << 7)
    return codes.to(tl.uint8), scales


@triton.jit
def rounding_words(step, tensor, start, ROWS: tl.constexpr):
    """Return random bits, uint32 (ROWS, 256), for the numbers of a tensor from `start`."""
    fours = tl.arange(0, ROWS)[:, None] * 64 + tl.arange(0, 64)[None, :] + (start // 4).to(tl.int32)
    a, b, c, d = tl.philox(0, fours, tensor.to(tl.int32), step.to(tl.int32), 0)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, 256))
