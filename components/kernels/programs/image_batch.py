"""Triton programs of the image batch: one block of an output frame's pixels a program.

Contrast is about a frame's mean, so colours need a pass before the one that changes them. It leaves what was resized,
in half precision where the result is no finer, because reading that is cheaper than resizing twice.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

_PIXELS = 512


def forward(images, boxes, colours, height, width, resizes, channels_last, mean, std, dtype):
    """What the reference of `image_batch` gives."""
    images, boxes = images.contiguous(), boxes.float().contiguous()
    samples, steps = images.shape[:2]
    if channels_last:
        full_height, full_width = images.shape[2:4]
        strides = (1, full_width * 3, 3)
    else:
        full_height, full_width = images.shape[3:]
        strides = (full_height * full_width, full_width, 1)
    out = torch.empty(samples, steps, 3, height, width, dtype=dtype, device=images.device)
    blocks = triton.cdiv(height * width, _PIXELS)
    grid = (samples * steps, blocks)
    geometry = (steps, full_height, full_width, *strides, height, width)
    taps = {
        "TAPS_Y": math.ceil(2.0 * max(full_height / height, 1.0)) if resizes else 0,
        "TAPS_X": math.ceil(2.0 * max(full_width / width, 1.0)) if resizes else 0,
    }
    jitter = colours is not None
    kept = sums = out
    if jitter:
        colours = colours.float().contiguous()
        sums = torch.empty(samples * steps, blocks, dtype=torch.float32, device=images.device)
        if resizes:
            precise = dtype.itemsize > 2
            kept = torch.empty_like(out, dtype=torch.float32 if precise else torch.float16)
        _greys[grid](images, boxes, colours, sums, kept, *geometry, **taps, PIXELS=_PIXELS)
    _images[grid](
        images, boxes, colours if jitter else boxes, sums, kept, out, *geometry, *mean, *std,
        **taps, JITTER=jitter, PIXELS=_PIXELS, BLOCKS=triton.next_power_of_2(blocks),
    )  # fmt: skip
    return out


@triton.jit
def _stretch(start, length, after, position):
    """Where a resized stretch begins and ends, and for each position its centre and first pixel, from there on."""
    base = tl.floor(start)
    scale = length / after
    support = tl.maximum(scale, 1.0)
    centre = (start - base) + scale * (position.to(tl.float32) + 0.5)
    first = tl.floor(centre - support + 0.5).to(tl.int32)
    end = tl.ceil(start - base + length).to(tl.int32)
    return base.to(tl.int32), end, 1.0 / support, centre, first


@triton.jit
def _weight(pixel, end, sharpness, centre):
    weight = tl.maximum(1.0 - tl.abs(pixel.to(tl.float32) + 0.5 - centre) * sharpness, 0.0)
    return tl.where((pixel >= 0) & (pixel < end), weight, 0.0)


@triton.jit
def _clamped(position, count):
    return tl.minimum(tl.maximum(position, 0), count - 1)


@triton.jit
def _seen(
    images, boxes, frame, steps, pixels, inside, full_height, full_width,
    by_channel, by_row, by_column, height, width, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr,
):  # fmt: skip
    """Red, green and blue, in [0, 1], of output pixels; without taps, windows are as large as the output."""
    box = boxes + (frame // steps) * 4
    origin = images + frame * 3 * full_height * full_width
    if TAPS_Y == 0:
        y = _clamped(tl.load(box).to(tl.int32) + pixels // width, full_height)
        x = _clamped(tl.load(box + 1).to(tl.int32) + pixels % width, full_width)
        at = origin + y * by_row + x * by_column
        red = tl.load(at, inside, other=0).to(tl.float32)
        green = tl.load(at + by_channel, inside, other=0).to(tl.float32)
        blue = tl.load(at + 2 * by_channel, inside, other=0).to(tl.float32)
        total = tl.full(red.shape, 255.0, tl.float32)
    else:
        top, y_end, y_sharpness, y_centre, y_first = _stretch(
            tl.load(box), tl.load(box + 2), height, pixels // width
        )
        left, x_end, x_sharpness, x_centre, x_first = _stretch(
            tl.load(box + 1), tl.load(box + 3), width, pixels % width
        )
        red = tl.zeros_like(y_centre)
        green = tl.zeros_like(y_centre)
        blue = tl.zeros_like(y_centre)
        y_total = tl.zeros_like(y_centre)
        x_total = tl.zeros_like(y_centre)
        for j in tl.static_range(TAPS_X):
            x_total += _weight(x_first + j, x_end, x_sharpness, x_centre)
        for i in tl.static_range(TAPS_Y):
            y_weight = _weight(y_first + i, y_end, y_sharpness, y_centre)
            y_total += y_weight
            row = origin + _clamped(y_first + i + top, full_height) * by_row
            for j in tl.static_range(TAPS_X):
                weight = y_weight * _weight(x_first + j, x_end, x_sharpness, x_centre)
                at = row + _clamped(x_first + j + left, full_width) * by_column
                red += weight * tl.load(at, inside, other=0).to(tl.float32)
                green += weight * tl.load(at + by_channel, inside, other=0).to(tl.float32)
                blue += weight * tl.load(at + 2 * by_channel, inside, other=0).to(tl.float32)
        total = tl.where(inside, y_total * x_total * 255.0, 1.0)
    return red / total, green / total, blue / total


@triton.jit
def _unit(values):
    return tl.minimum(tl.maximum(values, 0.0), 1.0)


@triton.jit
def _grey(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _hue_channel(sector, offset: tl.constexpr, value, chroma):
    k = sector + offset
    k = k - 6.0 * tl.floor(k / 6.0)
    return value - chroma * _unit(tl.minimum(k, 4.0 - k))


@triton.jit
def _turned(red, green, blue, turn):
    """The colours with their hue turned, in circles."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    safe = tl.where(chroma > 0.0, chroma, 1.0)
    of_others = tl.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0)
    sector = tl.where(value == red, (green - blue) / safe, of_others) + 6.0 * turn
    return (
        _hue_channel(sector, 5.0, value, chroma),
        _hue_channel(sector, 3.0, value, chroma),
        _hue_channel(sector, 1.0, value, chroma),
    )


@triton.jit
def _greys(
    images, boxes, colours, sums, kept, steps, full_height, full_width, by_channel, by_row, by_column, height, width,
    TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Sum of the brightness of a block of pixels, after the change of brightness; keeps the pixels if they are resized."""
    frame = tl.program_id(0).to(tl.int64)
    pixels = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixels < height * width
    red, green, blue = _seen(
        images, boxes, frame, steps, pixels, inside, full_height, full_width,
        by_channel, by_row, by_column, height, width, TAPS_Y, TAPS_X,
    )  # fmt: skip
    brightness = tl.load(colours + (frame // steps) * 4)
    red, green, blue = _unit(red * brightness), _unit(green * brightness), _unit(blue * brightness)
    if TAPS_Y > 0:
        plane = height * width
        into = kept + frame * 3 * plane + pixels
        tl.store(into, red.to(kept.dtype.element_ty), inside)
        tl.store(into + plane, green.to(kept.dtype.element_ty), inside)
        tl.store(into + 2 * plane, blue.to(kept.dtype.element_ty), inside)
    grey = tl.where(inside, _grey(red, green, blue), 0.0)
    tl.store(sums + frame * tl.num_programs(1) + tl.program_id(1), tl.sum(grey, 0))


@triton.jit
def _images(
    images, boxes, colours, sums, kept, out, steps, full_height, full_width, by_channel, by_row, by_column,
    height, width, mean_red, mean_green, mean_blue, std_red, std_green, std_blue,
    TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, JITTER: tl.constexpr, PIXELS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    pixels = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixels < height * width
    plane = height * width
    colour = colours + (frame // steps) * 4
    if JITTER and TAPS_Y > 0:
        of = kept + frame * 3 * plane + pixels
        red = tl.load(of, inside, other=0.0).to(tl.float32)
        green = tl.load(of + plane, inside, other=0.0).to(tl.float32)
        blue = tl.load(of + 2 * plane, inside, other=0.0).to(tl.float32)
    else:
        red, green, blue = _seen(
            images, boxes, frame, steps, pixels, inside, full_height, full_width,
            by_channel, by_row, by_column, height, width, TAPS_Y, TAPS_X,
        )  # fmt: skip
        if JITTER:
            brightness = tl.load(colour)
            red, green, blue = _unit(red * brightness), _unit(green * brightness), _unit(blue * brightness)
    if JITTER:
        blocks = tl.arange(0, BLOCKS)
        count = tl.num_programs(1)
        greys = tl.load(sums + frame * count + blocks, blocks < count, other=0.0)
        base = tl.sum(greys, 0) / (height * width)
        contrast = tl.load(colour + 1)
        red = _unit(base + (red - base) * contrast)
        green = _unit(base + (green - base) * contrast)
        blue = _unit(base + (blue - base) * contrast)
        grey = _grey(red, green, blue)
        saturation = tl.load(colour + 2)
        red = _unit(grey + (red - grey) * saturation)
        green = _unit(grey + (green - grey) * saturation)
        blue = _unit(grey + (blue - grey) * saturation)
        red, green, blue = _turned(red, green, blue, tl.load(colour + 3))
    into = out + frame * 3 * plane + pixels
    tl.store(into, ((red - mean_red) / std_red).to(out.dtype.element_ty), inside)
    tl.store(into + plane, ((green - mean_green) / std_green).to(out.dtype.element_ty), inside)
    tl.store(into + 2 * plane, ((blue - mean_blue) / std_blue).to(out.dtype.element_ty), inside)
