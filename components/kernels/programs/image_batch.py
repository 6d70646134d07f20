"""Triton programs of the image batch: one program per tile of an output frame, columns along the first axis.

A resize is two products with banded matrices of weights on tensor cores; small programs prepare the bands.
Contrast is relative to a frame's mean, so painting needs the sums of all tiles of a frame: either its
programs wait for each other with their pixels in registers, or one launch sums and another resizes again.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

_TILE_X, _TILE_Y = 16, 32  # of the output
_SPAN, _ROWS = 32, 16  # of the image, in one product
_LAUNCH = {"num_warps": 1, "num_stages": 1, "maxnreg": 96}
_GAIN = tl.constexpr(2.0**15)  # of weights in half precision, to keep sums of bytes of 2^-24 in range
_WAITS = True  # if a GPU certainly holds all programs of a frame at once


def forward(images, boxes, colors, height, width, resizes, channels_last, mean, std, dtype):
    """Implement the reference of `image_batch`."""
    images, boxes = images.contiguous(), boxes.float().contiguous()
    samples, steps = images.shape[:2]
    frames = samples * steps
    if channels_last:
        full_height, full_width = images.shape[2:4]
        strides = (1, full_width * 3, 3)
    else:
        full_height, full_width = images.shape[3:]
        strides = (full_height * full_width, full_width, 1)
    out = torch.empty(samples, steps, 3, height, width, dtype=dtype, device=images.device)
    across, down = triton.cdiv(width, _TILE_X), triton.cdiv(height, _TILE_Y)
    tiles = across * down
    precise = dtype != torch.bfloat16
    aligned = 1 if channels_last else math.gcd(full_width, 16, _SPAN // 4)
    spans = _chunks(full_width, width, _TILE_X, _SPAN, aligned)
    chunks = _chunks(full_height, height, _TILE_Y, _ROWS, 1)
    constants = {
        "ALIGNED": aligned, "SPANS": spans, "CHUNKS": chunks, "ACROSS": across, "DOWN": down,
        "TILE_X": _TILE_X, "TILE_Y": _TILE_Y, "SPAN": _SPAN, "ROWS": _ROWS,
    }  # fmt: skip
    windows = x_bands = y_bands = sums = boxes
    if resizes:
        weight = torch.float32 if precise else torch.float16
        windows = torch.empty(samples, across + down, 2, dtype=torch.int32, device=images.device)
        x_bands = torch.empty(samples, across, spans * _SPAN, _TILE_X, dtype=weight, device=images.device)
        y_bands = torch.empty(samples, down, chunks * _ROWS, _TILE_Y, dtype=weight, device=images.device)
        _bands[(samples, across + down)](
            boxes, windows, x_bands, y_bands, full_height, full_width, height, width,
            GAIN=1.0 if precise else _GAIN.value, **constants, num_warps=1,
        )  # fmt: skip
    if colors is not None:
        colors = colors.float().contiguous()
        sums = torch.full((frames * tiles + 1,), -1, dtype=torch.int32, device=images.device)

    def launch(adds, paints):
        _tiles[(frames * tiles,)](
            images, windows if resizes else boxes, x_bands, y_bands, boxes if colors is None else colors, sums, out,
            steps, full_height, full_width, *strides, height, width,
            *(-m / s for m, s in zip(mean, std, strict=True)), *(1.0 / s for s in std),
            RESIZES=resizes, JITTER=colors is not None, ADDS=adds, PAINTS=paints, PRECISE=precise,
            MOST_TILES=triton.next_power_of_2(tiles), **constants, **_LAUNCH,
        )  # fmt: skip

    if colors is None:
        launch(adds=False, paints=True)
    elif _WAITS and images.is_cuda and tiles <= _processors(images.device):
        launch(adds=True, paints=True)
    else:
        launch(adds=True, paints=False)
        launch(adds=False, paints=True)
    return out


def _chunks(before, after, tile, chunk, aligned):
    """Return the number of chunks of pixels that a tile may need, with alignment."""
    scale = before / after
    return triton.cdiv(math.ceil((tile - 1) * scale + 2.0 * max(scale, 1.0)) + 1 + aligned, chunk)


def _processors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _unit(values):
    return tl.minimum(tl.maximum(values, 0.0), 1.0)


@triton.jit
def _weight(pixel, end, sharpness, center):
    weight = _unit(1.0 - tl.abs(pixel + 0.5 - center) * sharpness)
    return tl.where((pixel >= 0) & (pixel < end), weight, 0.0)


@triton.jit
def _band(
    start, length, before, after, position, window, band,
    GAIN: tl.constexpr, ALIGNED: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Store the window and the band for the tile at a position.

    The window (2) holds the first pixel, in units of ALIGNED, and the number of pixels. The band (pixels,
    TILE) holds the weight of each pixel for each position, times the gain.
    """
    base = tl.floor(start)
    within = start - base
    end = tl.ceil(within + length)
    scale = length / after
    support = tl.maximum(scale, 1.0)
    center = within + scale * ((position + tl.arange(0, TILE)).to(tl.float32) + 0.5)
    first = tl.maximum(base + tl.floor(tl.min(center, 0) - support + 0.5), 0.0).to(tl.int32)
    first = tl.minimum(first, before - 1) // ALIGNED
    behind = (base + tl.max(center, 0) + support + 0.5).to(tl.int32)
    tl.store(window, first)
    first *= ALIGNED
    tl.store(window + 1, tl.maximum(tl.minimum(behind, before) - first, 1))

    # the last pixel stands for positions outside the image, on at most one side
    edge = tl.where(start < 0.0, 0, tl.where(start + length > before, before - 1, -1))
    pixel = tl.floor(center - support + 0.5)
    total = tl.zeros_like(center)
    at_edge = tl.zeros_like(center)
    for _ in range((2.0 * support).to(tl.int32) + 1):
        weight = _weight(pixel, end, 1.0 / support, center)
        total += weight
        reaches = tl.where(edge == 0, pixel + base <= 0, pixel + base >= edge)
        at_edge += tl.where(reaches, weight, 0.0)
        pixel += 1.0
    share = GAIN / total
    for chunk in range(CHUNKS):
        row = chunk * CHUNK + tl.arange(0, CHUNK)[:, None]
        place = first + row
        weight = _weight(place - base, end, 1.0 / support, center[None, :])
        weight = tl.where(place == edge, at_edge[None, :], weight) * share[None, :]
        tl.store(band + row * TILE + tl.arange(0, TILE)[None, :], weight.to(band.dtype.element_ty))


@triton.jit
def _bands(
    boxes, windows, x_bands, y_bands, full_height, full_width, height, width,
    GAIN: tl.constexpr, ALIGNED: tl.constexpr, SPANS: tl.constexpr, CHUNKS: tl.constexpr, ACROSS: tl.constexpr,
    DOWN: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store the bands of one tile of columns, or after those of rows, of one sample."""
    sample, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    box = boxes + sample * 4
    window = windows + (sample * (ACROSS + DOWN) + tile) * 2
    if tile < ACROSS:
        band = x_bands + (sample * ACROSS + tile) * SPANS * SPAN * TILE_X
        _band(
            tl.load(box + 1), tl.load(box + 3), full_width, width, tile * TILE_X, window, band,
            GAIN, ALIGNED, SPANS, SPAN, TILE_X,
        )  # fmt: skip
    else:
        tile -= ACROSS
        band = y_bands + (sample * DOWN + tile) * CHUNKS * ROWS * TILE_Y
        _band(
            tl.load(box), tl.load(box + 2), full_height, height, tile * TILE_Y, window, band,
            1.0, 1, CHUNKS, ROWS, TILE_Y,
        )  # fmt: skip


@triton.jit
def _resize(
    origin, window_x, window_y, x_band, y_band, full_height, full_width, by_channel, by_row, by_column,
    PRECISE: tl.constexpr, ALIGNED: tl.constexpr, SPANS: tl.constexpr,
    TILE_X: tl.constexpr, TILE_Y: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Return red, green and blue (x, y) of an output tile."""
    left, top, count = tl.load(window_x) * ALIGNED, tl.load(window_y), tl.load(window_y + 1)
    across_at = x_band + tl.arange(0, TILE_X)[:, None] + tl.arange(0, SPAN)[None, :] * TILE_X
    down_at = y_band + tl.arange(0, ROWS)[:, None] * TILE_Y + tl.arange(0, TILE_Y)[None, :]
    across = tl.load(across_at)
    red = tl.zeros((TILE_X, TILE_Y), tl.float32)
    green = tl.zeros_like(red)
    blue = tl.zeros_like(red)
    for row in range(0, count, ROWS):
        near = row + tl.arange(0, ROWS)
        red_rows = tl.zeros((TILE_X, ROWS), tl.float32)
        green_rows = tl.zeros_like(red_rows)
        blue_rows = tl.zeros_like(red_rows)
        for span in range(SPANS):
            if SPANS > 1:
                across = tl.load(across_at + span * SPAN * TILE_X)
            columns = left + span * SPAN + tl.arange(0, SPAN)
            at = origin + columns[:, None] * by_column + (top + near)[None, :] * by_row
            there = (columns < full_width)[:, None] & (near < count)[None, :]
            red_bytes = tl.load(at, there, other=0)
            green_bytes = tl.load(at + by_channel, there, other=0)
            blue_bytes = tl.load(at + 2 * by_channel, there, other=0)
            red_rows = _product(across, red_bytes, red_rows, PRECISE)
            green_rows = _product(across, green_bytes, green_rows, PRECISE)
            blue_rows = _product(across, blue_bytes, blue_rows, PRECISE)
        down = tl.load(down_at + row * TILE_Y)
        red = _product(red_rows, down, red, PRECISE)
        green = _product(green_rows, down, green, PRECISE)
        blue = _product(blue_rows, down, blue, PRECISE)
    return red, green, blue


@triton.jit
def _product(left, right, sums, PRECISE: tl.constexpr):
    """Add a product to sums; unless precise, bytes count 2^-24 each, as half floats of the same bits."""
    if PRECISE:
        out = tl.dot(left, right.to(tl.float32), sums, input_precision="ieee")
    elif right.dtype == tl.uint8:
        out = tl.dot(left, right.to(tl.uint16).to(tl.float16, bitcast=True), sums)
    else:
        out = tl.dot(left.to(tl.float16), right, sums)
    return out


@triton.jit
def _copy(origin, box, x, y, full_height, full_width, by_channel, by_row, by_column, inside):
    """Return red, green and blue of a window of whole pixels as large as the output."""
    rows = tl.minimum(tl.maximum(tl.load(box).to(tl.int32) + y, 0), full_height - 1)
    columns = tl.minimum(tl.maximum(tl.load(box + 1).to(tl.int32) + x, 0), full_width - 1)
    at = origin + columns[:, None] * by_column + rows[None, :] * by_row
    red = tl.load(at, inside, other=0).to(tl.float32)
    green = tl.load(at + by_channel, inside, other=0).to(tl.float32)
    blue = tl.load(at + 2 * by_channel, inside, other=0).to(tl.float32)
    return red, green, blue


@triton.jit
def _luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _hue_channel(place, value, least, chroma, turn):
    """Return one channel.

    `place` is the hue, from red on, in sixths of a circle times the chroma; `turn` is its shift.
    """
    turn -= 6.0 * tl.floor(turn / 6.0 + 0.5)
    color = tl.abs(tl.abs(place + chroma * turn) - 3.0 * chroma) + (least - chroma)
    return tl.minimum(tl.maximum(color, least), value)


@triton.jit
def _shift_hue(red, green, blue, turn):
    """Return the colors with shifted hue, in circles."""
    value = tl.maximum(tl.maximum(red, green), blue)
    least = tl.minimum(tl.minimum(red, green), blue)
    chroma = value - least
    place = tl.where(value == green, blue - red + 2.0 * chroma, red - green - 2.0 * chroma)
    place = tl.where(value == red, green - blue, place)
    return (
        _hue_channel(place, value, least, chroma, 6.0 * turn),
        _hue_channel(place, value, least, chroma, 6.0 * turn - 2.0),
        _hue_channel(place, value, least, chroma, 6.0 * turn + 2.0),
    )


@triton.jit
def _tiles(
    images, windows, x_bands, y_bands, colors, sums, out, steps, full_height, full_width,
    by_channel, by_row, by_column, height, width, shift_red, shift_green, shift_blue, by_red, by_green, by_blue,
    RESIZES: tl.constexpr, JITTER: tl.constexpr, ADDS: tl.constexpr, PAINTS: tl.constexpr, PRECISE: tl.constexpr,
    MOST_TILES: tl.constexpr, ALIGNED: tl.constexpr, SPANS: tl.constexpr, CHUNKS: tl.constexpr,
    ACROSS: tl.constexpr, DOWN: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Add the luma of a tile, after the change of brightness, to the sums, paint the tile, or both.

    Sums are the bits of float32, at least 0, or -1 until they are set; they are followed by the ticket of the
    last started program, from -1 on.
    """
    TILES: tl.constexpr = ACROSS * DOWN
    if ADDS and PAINTS:  # in the order of their start, so that no program waits for one that cannot run
        program = tl.atomic_add(sums + tl.num_programs(0), 1, sem="relaxed") + 1
    else:
        program = tl.program_id(0)
    frame, tile = program // TILES, program % TILES
    sample = (frame // steps).to(tl.int64)
    tile_x, tile_y = tile % ACROSS, tile // ACROSS
    x, y = tile_x * TILE_X + tl.arange(0, TILE_X), tile_y * TILE_Y + tl.arange(0, TILE_Y)
    inside = (x < width)[:, None] & (y < height)[None, :]
    color = colors + sample * 4
    origin = images + frame.to(tl.int64) * 3 * full_height * full_width
    if RESIZES:
        window = windows + sample * (ACROSS + DOWN) * 2
        x_band = x_bands + (sample * ACROSS + tile_x) * SPANS * SPAN * TILE_X
        y_band = y_bands + (sample * DOWN + tile_y) * CHUNKS * ROWS * TILE_Y
        red, green, blue = _resize(
            origin, window + tile_x * 2, window + (ACROSS + tile_y) * 2, x_band, y_band,
            full_height, full_width, by_channel, by_row, by_column,
            PRECISE, ALIGNED, SPANS, TILE_X, TILE_Y, SPAN, ROWS,
        )  # fmt: skip
        unit = 1.0 / 255.0 if PRECISE else 2.0**24 / 255.0 / _GAIN
    else:
        red, green, blue = _copy(
            origin, windows + sample * 4, x, y, full_height, full_width, by_channel, by_row, by_column, inside
        )
        unit = 1.0 / 255.0
    if JITTER:
        unit *= tl.load(color)
        red, green, blue = _unit(red * unit), _unit(green * unit), _unit(blue * unit)
    else:
        red, green, blue = red * unit, green * unit, blue * unit
    if ADDS:
        luma = tl.sum(tl.sum(tl.where(inside, _luma(red, green, blue), 0.0), 1), 0)
        tl.atomic_xchg(sums + program, tl.abs(luma).to(tl.int32, bitcast=True), sem="relaxed")
    if PAINTS:
        if JITTER:
            others = tl.arange(0, MOST_TILES)
            of = sums + frame * TILES + others
            lumas = tl.load(of, others < TILES, other=0, volatile=True)
            if ADDS:
                while tl.min(lumas, 0) < 0:
                    lumas = tl.load(of, others < TILES, other=0, volatile=True)
            contrast = tl.load(color + 1)
            base = tl.sum(lumas.to(tl.float32, bitcast=True), 0) / (height * width) * (1.0 - contrast)
            red = _unit(red * contrast + base)
            green = _unit(green * contrast + base)
            blue = _unit(blue * contrast + base)
            saturation = tl.load(color + 2)
            luma = _luma(red, green, blue) * (1.0 - saturation)
            red = _unit(red * saturation + luma)
            green = _unit(green * saturation + luma)
            blue = _unit(blue * saturation + luma)
            red, green, blue = _shift_hue(red, green, blue, tl.load(color + 3))
        plane = height * width
        into = out + frame.to(tl.int64) * 3 * plane + x[:, None] + y[None, :] * width
        tl.store(into, (red * by_red + shift_red).to(out.dtype.element_ty), inside)
        tl.store(into + plane, (green * by_green + shift_green).to(out.dtype.element_ty), inside)
        tl.store(into + 2 * plane, (blue * by_blue + shift_blue).to(out.dtype.element_ty), inside)
