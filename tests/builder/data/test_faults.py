"""Data and video files that are missing, damaged or contradict the metadata are named together with a cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.frames.probing import probe_cameras
from policysmith.builder.data.lerobot.layout import read_layout
from policysmith.schemas.errors import DatasetError

from .synthetic import (
    FPS,
    HEIGHT,
    WIDTH,
    edit_json,
    encode,
    picture,
    read_code,
    rewrite_parquet,
    write_dataset,
)
from .test_layout import POINTER

DATA = {"v2.1": "data/chunk-000/episode_000002.parquet", "v3.0": "data/chunk-001/file-000.parquet"}
VIDEO = {
    "v2.1": "videos/chunk-000/observation.images.top/episode_000002.mp4",
    "v3.0": "videos/observation.images.top/chunk-000/file-000.mp4",
}
FRAMES = {"v2.1": 9, "v3.0": 21}
BOTH = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def replace(table: pa.Table, key: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(key), key, values)


def as_scalars(table: pa.Table) -> pa.Table:
    return replace(table, "action", pa.array(np.zeros(table.num_rows, dtype=np.float32)))


def as_texts(table: pa.Table) -> pa.Table:
    return replace(table, "action", pa.array([["a", "b"]] * table.num_rows))


def with_a_short_row(table: pa.Table) -> pa.Table:
    rows = table["observation.state"].to_pylist()
    return replace(
        table, "observation.state", pa.array([rows[0][:2], *rows[1:]], type=pa.list_(pa.float32()))
    )


def with_a_null(table: pa.Table) -> pa.Table:
    rows = table["observation.state"].to_pylist()
    return replace(table, "observation.state", pa.array([None, *rows[1:]], type=pa.list_(pa.float32())))


def shuffled(table: pa.Table) -> pa.Table:
    frames = table["frame_index"].to_pylist()
    return replace(table, "frame_index", pa.array([frames[1], frames[0], *frames[2:]]))


def renumbered(table: pa.Table) -> pa.Table:
    return replace(table, "episode_index", pa.array([77] * table.num_rows))


def of_an_unknown_task(table: pa.Table) -> pa.Table:
    return replace(table, "task_index", pa.array([*table["task_index"].to_pylist()[:-1], 5]))


def fractional(table: pa.Table) -> pa.Table:
    return replace(table, "episode_index", pa.array([0.5] * table.num_rows))


TABLE_FAULTS: list[tuple[Callable[[pa.Table], pa.Table], str]] = [
    (lambda table: table.drop_columns("action"), r"has no column `action`, only"),
    (
        lambda table: table.drop_columns(["task_index", "frame_index"]),
        r"has no column `frame_index`, `task_index`",
    ),
    (
        lambda table: table.slice(0, table.num_rows - 1),
        r"rows, but the episode lengths in the metadata add up to",
    ),
    (as_scalars, r"column `action` holds values of shape \[1\], but meta/info.json specifies float32"),
    (as_texts, r"column `action` holds values of type list"),
    (with_a_short_row, r"column `observation.state` holds lists of sizes \[2, 3\]"),
    (with_a_null, r"column `observation.state` holds lists of sizes \[None, 3\]"),
    (shuffled, r"`frame_index` of episode 2 does not count from 0 to 8"),
    (renumbered, r"should belong to episode 2, but their `episode_index` differs; the length"),
    (fractional, r"column `episode_index` must hold one integer per row"),
    (of_an_unknown_task, r"has the task_index 5, but the task table in meta/ lists only 0, 1"),
]


@BOTH
@pytest.mark.parametrize(("change", "message"), TABLE_FAULTS)
def test_faults_in_a_data_file(
    tmp_path: Path, version: str, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    root = write_dataset(tmp_path / "set", version).root
    rewrite_parquet(root / DATA[version], change)
    with pytest.raises(DatasetError, match=message) as caught:
        LeRobotDataset(root, cameras=[])
    assert str(root if change is of_an_unknown_task else root / DATA[version]) in str(caught.value)


@BOTH
def test_an_episode_length_that_is_wrong_in_the_metadata(tmp_path: Path, version: str) -> None:
    """Swapped lengths still add up, so only the rows reveal them."""
    root = write_dataset(tmp_path / "set", version).root
    if version == "v3.0":
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        rewrite_parquet(path, lambda table: replace(table, "length", pa.array([5, 7, 9])))
    else:
        path = root / "meta/episodes.jsonl"
        text = path.read_text().replace('"length": 7', '"length": 0').replace('"length": 5', '"length": 7')
        path.write_text(text.replace('"length": 0', '"length": 5'))
    with pytest.raises(
        DatasetError, match=r"(episode lengths in the metadata|the length in the metadata)|count from 0"
    ):
        LeRobotDataset(root, cameras=[])


@BOTH
def test_data_files_that_cannot_be_read(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "set", version).root
    path = root / DATA[version]
    content = path.read_bytes()
    for damaged, message in (
        (content[: len(content) // 2], r"not a readable parquet file"),
        (
            content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :],
            r"not a readable parquet file",
        ),
        (POINTER.encode(), r"git-LFS pointer, not the file itself; run `git lfs pull`"),
        (b"", r"is empty"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=message) as caught:
            LeRobotDataset(root, cameras=[])
        assert path.name in str(caught.value)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{path.name} is missing"):
        LeRobotDataset(root, cameras=[])


@BOTH
def test_no_action(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "set", version).root
    edit_json(root / "meta/info.json", lambda info: info["features"].pop("action"))
    with pytest.raises(DatasetError, match=r"no numeric feature `action`, only `observation.state`"):
        LeRobotDataset(root, cameras=[])


@BOTH
@pytest.mark.parametrize("difference", [-1, 6])
def test_frames_that_do_not_match_the_rows(tmp_path: Path, version: str, difference: int) -> None:
    root = write_dataset(tmp_path / "set", version).root
    count = FRAMES[version] + difference
    encode(root / VIDEO[version], (picture(frame) for frame in range(count)))
    with pytest.raises(
        DatasetError, match=rf"mp4 has {count} frames, but the metadata expects {FRAMES[version]};"
    ):
        LeRobotDataset(root)


@BOTH
@pytest.mark.parametrize("surplus", [1, 5])
def test_a_few_surplus_frames_are_accepted_with_a_word(
    tmp_path: Path, version: str, surplus: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "set", version).root
    first = 12 if version == "v2.1" else 0
    count = FRAMES[version] + surplus
    encode(root / VIDEO[version], (picture(first + frame) for frame in range(count)))
    dataset = LeRobotDataset(root, cameras=["top"])
    assert [read_code(sample["observation.images.top"][0].numpy()) for sample in dataset] == list(range(30))
    assert f"with {surplus} more" in caplog.text


@BOTH
def test_videos_that_cannot_be_read(tmp_path: Path, version: str, frame_cache: Path) -> None:
    root = write_dataset(tmp_path / "set", version).root
    path = root / VIDEO[version]
    content = path.read_bytes()
    for damaged, message in (
        (
            content[: len(content) // 2],
            r"mp4 cannot be decoded \(.*\); it is probably truncated",
        ),
        (POINTER.encode(), r"git-LFS pointer, not the file itself; run `git lfs pull`"),
        (b"", r"is empty"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=message) as caught:
            LeRobotDataset(root)
        assert path.name in str(caught.value)
    assert not list(frame_cache.glob("*.tmp"))


@BOTH
def test_a_missing_video_lists_the_episodes_concerned(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "set", version).root
    (root / VIDEO[version]).unlink()
    episodes = {"v2.1": r"1 \(2\) of the 5", "v3.0": r"3 \(0, 1, 2\) of the 5"}[version]
    with pytest.raises(
        DatasetError, match=rf"camera `top` has no video for {episodes} chosen.*choose the other episodes"
    ):
        LeRobotDataset(root)
    assert len(LeRobotDataset(root, episodes=[3, 4])) == 9
    assert len(LeRobotDataset(root, cameras=["wrist"])) == 30


def test_a_camera_that_exists_on_paper_only(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root

    def announce(info: dict[str, Any]) -> None:
        info["features"]["observation.images.side"] = info["features"]["observation.images.top"]

    edit_json(root / "meta/info.json", announce)
    with pytest.raises(
        DatasetError, match=r"`side` has no video for any of the 5 .*or leave out this camera"
    ):
        LeRobotDataset(root)
    assert len(LeRobotDataset(root, cameras=["top"])) == 30


def test_a_video_cut_short_behind_its_header(tmp_path: Path) -> None:
    """With the index at the front, a truncated file opens, but ends too early."""
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(60,)).root
    path = root / "videos/chunk-000/observation.images.top/episode_000000.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (60, HEIGHT, WIDTH, 3), dtype=np.uint8)
    encode(path, noise, options={"movflags": "faststart"})
    assert len(LeRobotDataset(root)) == 60
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"truncated"):
        LeRobotDataset(root)


def test_frames_of_another_size(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    path = root / VIDEO["v2.1"]
    encode(path, [np.zeros((16, 16, 3), dtype=np.uint8)] * 9)
    with pytest.raises(
        DatasetError,
        match=rf"{path.name}.*16 x 16 pixels \(height x width\), but meta/info.json specifies 32 x 64",
    ):
        LeRobotDataset(root)


def test_a_cached_video_is_checked_against_changed_metadata(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    assert len(LeRobotDataset(root)) == 30
    edit_json(
        root / "meta/info.json",
        lambda info: info["features"]["observation.images.top"].update(shape=[64, 32, 3]),
    )
    with pytest.raises(DatasetError, match=r"has 32 x 64 pixels .*, but meta/info.json specifies 64 x 32"):
        LeRobotDataset(root)


@BOTH
def test_video_of_another_frame_rate(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "set", version).root
    encode(root / VIDEO[version], (picture(frame) for frame in range(FRAMES[version])), rate=3 * FPS)
    episode = 2 if version == "v2.1" else 0
    with pytest.raises(
        DatasetError,
        match=rf"frame 1 of episode {episode} is due at 0.100 s, but the video shows it at 0.033 s .*has 30 frames per",
    ):
        LeRobotDataset(root)


@BOTH
@pytest.mark.parametrize(("rate", "surplus"), [(3 * FPS, 0), (FPS / 2, 0), (FPS, 6), (FPS, 5)])
def test_a_check_finds_the_rate_and_length_that_a_run_refuses(
    tmp_path: Path, version: str, rate: float, surplus: int
) -> None:
    root = write_dataset(tmp_path / "set", version).root
    count = FRAMES[version] + surplus
    encode(root / VIDEO[version], (picture(frame) for frame in range(count)), rate=int(rate))
    layout = read_layout(root)
    if (rate, surplus) == (FPS, 5):  # as many as some recorders leave
        probe_cameras(layout, list(layout.cameras.values()), layout.episodes)
        return
    with pytest.raises(
        DatasetError, match=f"has {count} frames" if surplus else "shows its second frame after"
    ):
        probe_cameras(layout, list(layout.cameras.values()), layout.episodes)


def test_half_a_frame_of_drift_in_a_v3_video_is_no_truncation(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    key = "videos/observation.images.top/from_timestamp"
    for path in root.glob("meta/episodes/*/*.parquet"):
        rewrite_parquet(
            path, lambda table: replace(table, key, pa.array([t + 0.04 for t in table[key].to_pylist()]))
        )
    with pytest.raises(
        DatasetError, match=r"frame 0 of episode 0 is due .*0.4 frames off.*does not match a frame"
    ):
        LeRobotDataset(root, cameras=["top"])


TIMES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, str]] = {
    "double rate": (lambda t: t / 2, 1, "advance at 20 frames per second, so correct `fps`"),
    "offset": (lambda t: t + 0.05, 0, "do not start at 0"),
    "reversed": (lambda t: t[::-1], 0, "reordered"),
    "drift": (lambda t: t * (1 + 0.5 / 8), 2, "0.2125 s, but is due at 0.2 s"),
    "a step back": (lambda t: np.where(t == t[4], t[3], t), 4, "dropped, duplicated"),
    "nan": (lambda t: np.where(t == t[4], np.nan, t), 4, "`timestamp` nan s"),
}


@BOTH
@pytest.mark.parametrize("fault", TIMES)
def test_times_that_do_not_fit_the_rate(tmp_path: Path, version: str, fault: str) -> None:
    change, frame, words = TIMES[fault]
    root = write_dataset(tmp_path / "set", version).root

    def retimed(table: pa.Table) -> pa.Table:
        times, rows = table["timestamp"].to_numpy().copy(), table["episode_index"].to_numpy() == 2
        times[rows] = change(times[rows].astype(np.float64)).astype(np.float32)
        return replace(table, "timestamp", pa.array(times))

    rewrite_parquet(root / DATA[version], retimed)
    with pytest.raises(
        DatasetError, match=rf"frame {frame} of episode 2 has the `timestamp`.*fps of"
    ) as caught:
        LeRobotDataset(root, cameras=[])
    assert words in str(caught.value)


def test_times_rounded_to_milliseconds_are_good(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    edit_json(root / "meta/info.json", lambda info: info.update(fps=30))
    for path in root.glob("data/*/*.parquet"):
        rewrite_parquet(
            path,
            lambda table: replace(
                table, "timestamp", pa.array(np.round(table["frame_index"].to_numpy() / 30, 3))
            ),
        )
    assert len(LeRobotDataset(root, cameras=[])) == 30


@pytest.mark.parametrize("shift", [-0.02, 0.02])
def test_v3_takes_the_frame_nearest_to_a_rounded_time(tmp_path: Path, shift: float) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    key = "videos/observation.images.top/from_timestamp"
    for path in root.glob("meta/episodes/*/*.parquet"):
        rewrite_parquet(
            path, lambda table: replace(table, key, pa.array([t + shift for t in table[key].to_pylist()]))
        )
    dataset = LeRobotDataset(root, cameras=["top"])
    assert [read_code(sample["observation.images.top"][0].numpy()) for sample in dataset] == list(range(30))


def test_a_video_that_starts_late_is_still_aligned(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    before = LeRobotDataset(root, cameras=["top"])
    encode(root / VIDEO["v3.0"], (picture(frame) for frame in range(21)), start=5)
    after = LeRobotDataset(root, cameras=["top"])
    for frame in (0, 8, 20):
        assert before[frame]["observation.images.top"].equal(after[frame]["observation.images.top"])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "0.png"}, r"row 0 of `observation.images.wrist` has no image bytes"),
        (
            {"bytes": b"not an image", "path": None},
            r"row 0 of `observation.images.wrist` is not a readable image",
        ),
    ],
)
def test_image_columns_without_images(tmp_path: Path, cell: dict[str, Any], message: str) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", image_camera=True).root
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rewrite_parquet(
        root / DATA["v2.1"],
        lambda table: replace(
            table, "observation.images.wrist", pa.array([cell] * table.num_rows, type=kind)
        ),
    )
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)
