"""Depth, 16-bit, float and gray images are refused by name, and never taken for RGB."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.lerobot.info import inspect
from policysmith.schemas.errors import DatasetError

from .synthetic import HEIGHT, WIDTH, edit_json, rewrite_parquet, write_dataset
from .test_faults import replace

WRIST = "observation.images.wrist"
RAMP = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def image(values: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def rgb16() -> bytes:
    """Encode a PNG with 16 bits a channel, which Pillow cannot write."""
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb48be"
        values = np.repeat(RAMP[..., None], 3, -1).astype(np.uint16)
        for packet in (
            *stream.encode(av.VideoFrame.from_ndarray(values, format="rgb48be")),
            *stream.encode(),
        ):
            container.mux(packet)
    return file.getvalue()


IMAGES = {
    "16-bit depth": lambda: image(RAMP.astype(np.uint16)),
    "float depth": lambda: image(RAMP.astype(np.float32) / 1000, "TIFF"),
    "gray": lambda: image((RAMP % 256).astype(np.uint8)),
    "transparent": lambda: image(np.repeat((RAMP % 256).astype(np.uint8)[..., None], 4, -1)),
    "16-bit color": rgb16,
}


@pytest.mark.parametrize("form", IMAGES)
def test_images_that_are_not_8_bit_rgb_are_refused_whatever_the_metadata_says(
    form: str, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "d", "v2.1", image_camera=True)
    cell = {"bytes": IMAGES[form](), "path": "x"}
    for path in data.root.glob("data/**/*.parquet"):
        rewrite_parquet(path, lambda table: replace(table, WRIST, pa.array([cell] * table.num_rows)))
    with pytest.raises(DatasetError, match=r"row 0 of .*wrist.* only 8-bit RGB"):
        LeRobotDataset(data.root)
    assert len(LeRobotDataset(data.root, cameras=["top"]))


@pytest.mark.parametrize("form", ["gray12le", "gray10le"])
def test_gray_video_of_more_than_8_bits_is_refused(form: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", "v2.1")
    for path in data.root.glob(f"videos/**/{WRIST}/*.mp4"):
        with av.open(str(path)) as old:
            times = sum(1 for _ in old.decode(video=0))
            rate = old.streams.video[0].average_rate
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                "libx265", rate=Fraction(rate), options={"x265-params": "log-level=none"}
            )
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, form
            frame = av.VideoFrame.from_ndarray(RAMP.astype(np.uint16), format=form)
            for packet in (*(p for _ in range(times) for p in stream.encode(frame)), *stream.encode()):
                container.mux(packet)
    with pytest.raises(DatasetError, match=f"contains {form}, gray with"):
        LeRobotDataset(data.root)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": [1, HEIGHT, WIDTH]}, "has 1 channel"),
        ({"shape": [4, HEIGHT, WIDTH]}, "has 4 channels"),
        ({"info": {"is_depth_map": True}}, "contains depth"),
        ({"info": {"video.is_depth_map": True}}, "contains depth"),
        ({"video_info": {"video.is_depth_map": True}}, "contains depth"),
    ],
)
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_camera_that_is_not_rgb_is_named_before_anything_is_decoded(
    change: dict[str, object], reason: str, version: str, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "d", version)
    edit_json(data.root / "meta/info.json", lambda info: info["features"][WRIST].update(change))
    info = inspect(data.root)
    assert info.unreadable == {"wrist": reason}
    assert list(info.cameras) == ["top"]
    for cameras in (None, ["wrist"], ["top", "wrist"]):
        with pytest.raises(DatasetError, match=f"camera `wrist` of .* {reason}; only 8-bit RGB"):
            LeRobotDataset(data.root, cameras=cameras)
    assert len(LeRobotDataset(data.root, cameras=["top"]))
