"""Pictures of rollouts: a video of several side by side, and one as a row of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image

from ..simulation.base import Image

FILM_RATE = 40
"""Frames kept per simulated second."""
VIDEO_RATE = 20
"""Frames shown per second: half as fast as the robot."""
HOLD = VIDEO_RATE
"""Number of frames that hold the end."""

TILE = 224
BORDER = 6
GAP = 6
RUNNING, SUCCESS, FAILURE, BACKGROUND = (148, 156, 168), (46, 160, 97), (214, 69, 65), (24, 27, 33)


def save_video(path: Path, rollouts: Sequence[tuple[Sequence[Image], bool]]) -> int:
    """Write rollouts (frames, success) as tiles of an H.264 video, and return its number of frames.

    A finished rollout holds its last frame, with a green border after success and a red one after failure.
    """
    grids = [[_upscale(frame, TILE) for frame in frames] for frames, _ in rollouts]
    columns = min(3, len(grids))
    rows = math.ceil(len(grids) / columns)
    cell_height, cell_width = (side + 2 * BORDER + GAP for side in grids[0][0].shape[:2])
    height, width = (even(extent + GAP) for extent in (rows * cell_height, columns * cell_width))
    total = max(len(frames) for frames in grids) + HOLD
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=VIDEO_RATE, options={"crf": "20", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, VIDEO_RATE)
        for moment in range(total):
            picture = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
            for place, (frames, (_, success)) in enumerate(zip(grids, rollouts, strict=True)):
                row, column = divmod(place, columns)
                top, left = GAP + row * cell_height, GAP + column * cell_width
                over = moment >= len(frames) - 1
                color = (SUCCESS if success else FAILURE) if over else RUNNING
                tile = _framed(frames[min(moment, len(frames) - 1)], color)
                picture[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return total


def save_strip(path: Path, frames: Sequence[Image], count: int = 6) -> None:
    """Write a rollout as a row of `count` frames, evenly spaced from its first to its last (png)."""
    chosen = [frames[round(i * (len(frames) - 1) / (count - 1))] for i in range(count)]
    tiles = [_upscale(frame, TILE) for frame in chosen]
    gap = np.zeros((tiles[0].shape[0], GAP, 4), dtype=np.uint8)
    row: list[Image] = []
    for tile in tiles:
        opaque = np.full((*tile.shape[:2], 1), 255, dtype=np.uint8)
        row += [gap, np.concatenate([tile, opaque], axis=2)]
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.concatenate(row[1:], axis=1)).save(path, optimize=True)


def even(extent: int) -> int:
    """Round up to an even number, because yuv420p halves both sides."""
    return extent + extent % 2


def _framed(image: Image, color: tuple[int, int, int]) -> Image:
    framed = np.empty((image.shape[0] + 2 * BORDER, image.shape[1] + 2 * BORDER, 3), dtype=np.uint8)
    framed[:] = color
    framed[BORDER:-BORDER, BORDER:-BORDER] = image
    return framed


def _upscale(picture: Image, side: int) -> Image:
    """Enlarge an image (H, W, 3) by a whole factor, to at least `side` pixels of height."""
    height, width = picture.shape[:2]
    factor = max(1, math.ceil(side / height))
    if factor == 1:
        return picture
    pixels = PIL.Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(pixels.resize((width * factor, height * factor), PIL.Image.Resampling.BICUBIC))
