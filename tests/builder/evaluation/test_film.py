"""Videos that browsers play, and strips."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from policysmith.builder.evaluation.video import (
    BORDER,
    FAILURE,
    GAP,
    HOLD,
    RUNNING,
    SUCCESS,
    save_strip,
    save_video,
)

Frames = list[NDArray[np.uint8]]


def flat(count: int, side: int = 64) -> Frames:
    return [np.full((side, side, 3), 10 * i, dtype=np.uint8) for i in range(count)]


def test_a_video_holds_every_frame_and_plays_in_browsers(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.mp4"
    total = save_video(path, [(flat(5), True), (flat(9), False), (flat(3), True), (flat(4), True)])
    assert total == 9 + HOLD
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
    assert len(pictures) == total
    assert pictures[0].shape[0] % 2 == pictures[0].shape[1] % 2 == 0
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    side = 256 + 2 * BORDER
    first, second = GAP + BORDER // 2, GAP + side + GAP + BORDER // 2
    middle = GAP + side // 2
    assert pictures[1][middle, first] == pytest.approx(RUNNING, abs=30)
    assert pictures[-1][middle, first] == pytest.approx(SUCCESS, abs=30)
    assert pictures[-1][middle, second] == pytest.approx(FAILURE, abs=30)
    assert pictures[6][middle, middle] == pytest.approx(pictures[-1][middle, middle], abs=4)


def test_a_strip_goes_from_the_first_frame_to_the_last(tmp_path: Path) -> None:
    save_strip(tmp_path / "strip.png", flat(21), count=6)
    strip = np.asarray(PIL.Image.open(tmp_path / "strip.png"))
    assert strip.shape == (256, 6 * 256 + 5 * GAP, 4)
    centres = [128 + i * (256 + GAP) for i in range(6)]
    assert strip[128, centres, 0].tolist() == [0, 40, 80, 120, 160, 200]
    assert strip[128, 256 + GAP // 2, 3] == 0
