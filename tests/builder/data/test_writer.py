"""The writer's files, read back with parquet and PyAV alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from policysmith.builder.data.writing.statistics import STATISTICS, ImageSummary, VectorSummary
from policysmith.builder.data.writing.writer import LeRobotWriter
from policysmith.schemas.errors import DatasetError

CAMERA = "observation.images.front"
FPS = 20
LENGTHS = (7, 4, 9)


def episode(index: int, length: int) -> dict[str, np.ndarray]:
    """Return an episode in which a bright square moves over a gray gradient and numbers increase."""
    images = np.empty((length, 3, 32, 48), dtype=np.uint8)
    images[:] = np.linspace(40, 120, 48).astype(np.uint8)
    for step in range(length):
        images[step, index % 3, 8:24, 4 * step : 4 * step + 12] = 220
    counting = np.arange(length, dtype=np.float32)[:, None]
    return {
        CAMERA: images,
        "observation.state": counting + np.array([index, 10 * index, -1], dtype=np.float32),
        "action": counting / 10 + np.array([0.5, -0.25], dtype=np.float32),
    }


def writer(root: Path, **options: Any) -> LeRobotWriter:
    return LeRobotWriter(
        root,
        fps=FPS,
        cameras={"front": (32, 48)},
        vectors={"observation.state": ["x", "y", "z"], "action": ["dx", "dy"]},
        robot_type="toy",
        **options,
    )


def write(root: Path, **options: Any) -> list[dict[str, np.ndarray]]:
    episodes = [episode(index, length) for index, length in enumerate(LENGTHS)]
    with writer(root, **options) as dataset:
        for index, frames in enumerate(episodes):
            dataset.add_episode(("push", "pull")[index % 2], frames)
    return episodes


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).transpose(
            0, 3, 1, 2
        )


def test_the_tree_is_lerobots(tmp_path: Path) -> None:
    write(tmp_path / "set")
    assert list(digests(tmp_path / "set")) == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        f"videos/{CAMERA}/chunk-000/file-000.mp4",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "no temporary folder stays behind"


def test_info_describes_the_set(tmp_path: Path) -> None:
    write(tmp_path / "set")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 20, 2)
    assert (info["fps"], info["robot_type"], info["splits"]) == (FPS, "toy", {"train": "0:3"})
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]}
    camera = info["features"][CAMERA]
    assert (camera["dtype"], camera["shape"]) == ("video", [32, 48, 3])
    assert camera["info"]["video.codec"] == "h264"
    counters = ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    assert list(info["features"])[-5:] == counters


def test_frames_come_back(tmp_path: Path) -> None:
    episodes = write(tmp_path / "set")
    table = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
    for key in ("observation.state", "action"):
        stored = np.array(table[key], dtype=np.float32)
        np.testing.assert_array_equal(stored, np.concatenate([frames[key] for frames in episodes]))
    assert table["episode_index"] == [0] * 7 + [1] * 4 + [2] * 9
    assert table["frame_index"] == [*range(7), *range(4), *range(9)]
    assert table["index"] == list(range(20))
    assert table["task_index"] == [0] * 7 + [1] * 4 + [0] * 9
    np.testing.assert_allclose(table["timestamp"], np.array(table["frame_index"]) / FPS, rtol=1e-6)


def test_tasks_are_a_pandas_frame_indexed_by_text(tmp_path: Path) -> None:
    write(tmp_path / "set")
    table = pq.read_table(tmp_path / "set/meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["push", "pull"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_episodes_say_where_their_frames_are(tmp_path: Path) -> None:
    write(tmp_path / "set")
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    ends = np.cumsum(LENGTHS)
    for index, row in enumerate(rows):
        start, end = ends[index] - LENGTHS[index], ends[index]
        assert row["episode_index"] == index
        assert row["tasks"] == [("push", "pull")[index % 2]]
        assert row["length"] == LENGTHS[index]
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (start, end)
        span = row[f"videos/{CAMERA}/from_timestamp"], row[f"videos/{CAMERA}/to_timestamp"]
        np.testing.assert_allclose(span, (start / FPS, end / FPS))
        places = ("data", f"videos/{CAMERA}", "meta/episodes")
        assert all(row[f"{place}/{part}"] == 0 for place in places for part in ("chunk_index", "file_index"))


def test_video_holds_every_episode_in_order_with_frequent_keyframes(tmp_path: Path) -> None:
    episodes = write(tmp_path / "set")
    path = tmp_path / f"set/videos/{CAMERA}/chunk-000/file-000.mp4"
    images = np.concatenate([frames[CAMERA] for frames in episodes])
    decoded = decode(path)
    assert decoded.shape == images.shape
    distance = np.abs(decoded[:, None].astype(int) - images[None].astype(int)).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(len(images))).all()
    assert distance.diagonal().max() < 12
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
        frames = list(container.decode(stream))
    assert [frame.key_frame for frame in frames] == [step % 2 == 0 for step in range(20)]
    assert [float(frame.time) for frame in frames] == pytest.approx([step / FPS for step in range(20)])


def test_full_files_are_followed_by_new_ones(tmp_path: Path) -> None:
    episodes = write(tmp_path / "set", data_megabytes=0, video_megabytes=0)
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for index, row in enumerate(rows):
        assert row["data/file_index"] == index
        table = pq.read_table(tmp_path / f"set/data/chunk-000/file-{index:03d}.parquet")
        assert table.num_rows == LENGTHS[index]
        file = row[f"videos/{CAMERA}/file_index"]
        start = round(row[f"videos/{CAMERA}/from_timestamp"] * FPS)
        decoded = decode(tmp_path / f"set/videos/{CAMERA}/chunk-000/file-{file:03d}.mp4")[start:][
            : LENGTHS[index]
        ]
        assert np.abs(decoded.astype(int) - episodes[index][CAMERA]).mean() < 12


def test_statistics_are_exact_per_episode_and_overall(tmp_path: Path) -> None:
    episodes = write(tmp_path / "set")
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    states = np.concatenate([frames["observation.state"] for frames in episodes]).astype(float)
    assert list(stats["observation.state"]) == list(STATISTICS)
    np.testing.assert_allclose(stats["observation.state"]["mean"], states.mean(0))
    np.testing.assert_allclose(stats["observation.state"]["std"], states.std(0))
    np.testing.assert_allclose(stats["observation.state"]["q90"], np.quantile(states, 0.9, axis=0))
    assert stats["observation.state"]["count"] == [20]
    pixels = np.concatenate([frames[CAMERA] for frames in episodes]) / 255
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), pixels.std((0, 2, 3)))
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["max"]), pixels.max((0, 2, 3)))
    np.testing.assert_allclose(rows[1]["stats/action/min"], episodes[1]["action"].min(0))
    np.testing.assert_allclose(rows[2][f"stats/{CAMERA}/q50"], _medians(episodes[2]))
    assert rows[1]["stats/index/min"] == [7]


def _medians(frames: dict[str, np.ndarray]) -> np.ndarray:
    pixels = np.sort(frames[CAMERA].transpose(1, 0, 2, 3).reshape(3, -1), axis=1) / 255
    return pixels[:, (pixels.shape[1] + 1) // 2 - 1][:, None, None]


def test_summaries_do_not_depend_on_how_data_arrives() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    rows = generator.normal(size=(6, 2))
    for summary, values in ((ImageSummary, images), (VectorSummary, rows)):
        whole, parts = summary(), summary()
        whole.add(values)
        for part in np.split(values, 3):
            parts.add(part)
        assert whole.result() == parts.result()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "first")
    write(tmp_path / "second")
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


@pytest.mark.parametrize("blocked_by", ["file in it", "file"])
def test_nothing_is_overwritten(tmp_path: Path, blocked_by: str) -> None:
    target = tmp_path / "set"
    if blocked_by == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty; name a new"):
        writer(target)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    assert (tmp_path / "set/meta/info.json").exists()


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writer(tmp_path / "set") as dataset:
            dataset.add_episode("push", episode(0, 5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least one episode"), writer(tmp_path / "set"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.zeros((5, 1), np.float32)}, "unknown \\['extra'\\]"),
        ({"action": np.zeros((5, 3), np.float32)}, "`action` must be float32 of shape \\(5, 2\\)"),
        ({"action": np.zeros((5, 2), np.float64)}, "found float64"),
        ({"action": np.full((5, 2), np.nan, np.float32)}, "not finite"),
        ({CAMERA: np.zeros((5, 3, 32, 32), np.uint8)}, f"`{CAMERA}` must be uint8"),
        ({CAMERA: np.zeros((4, 3, 32, 48), np.uint8)}, "of shape"),
    ],
)
def test_frames_unlike_those_declared_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message), writer(tmp_path / "set") as dataset:
        dataset.add_episode("push", episode(0, 5) | change)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    frames = episode(0, 5)
    del frames["action"]
    with pytest.raises(DatasetError, match="missing \\['action'\\]"), writer(tmp_path / "set") as dataset:
        dataset.add_episode("push", frames)


def test_odd_images_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DatasetError, match="even height and width"),
        LeRobotWriter(tmp_path / "set", fps=10, cameras={"front": (31, 48)}, vectors={}) as dataset,
    ):
        dataset.add_episode("push", {CAMERA: np.zeros((2, 3, 31, 48), np.uint8)})
    assert list(tmp_path.iterdir()) == []


def test_a_set_may_have_no_camera(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "set", fps=10, cameras={}, vectors={"action": ["a"]}) as dataset:
        dataset.add_episode("push", {"action": np.zeros((3, 1), np.float32)})
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["video_path"] is None
