"""Metadata of the three format versions, and what is said about metadata that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from policysmith.builder.data.lerobot.layout import Storage, read_layout
from policysmith.schemas.errors import DatasetError

from .synthetic import FPS, TASKS, VERSIONS, edit_json, rewrite_parquet, write_dataset, write_lines

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_and_tasks(tmp_path: Path, version: str) -> None:
    data = write_dataset(tmp_path / "set", version)
    layout = read_layout(data.root)
    assert layout.codebase_version == version
    assert layout.fps == FPS
    assert layout.tasks == dict(enumerate(TASKS))
    assert [episode.length for episode in layout.episodes] == list(data.lengths)
    assert [episode.start for episode in layout.episodes] == list(data.starts)
    assert layout.episodes[2].tasks == TASKS
    assert layout.episodes[3].tasks == TASKS[1:]
    assert layout.cameras["wrist"].storage is Storage.VIDEO
    assert all(episode.data_file.is_file() for episode in layout.episodes)
    assert all(span.path.is_file() for episode in layout.episodes for span in episode.videos.values())


def test_v3_packs_episodes_into_files(tmp_path: Path) -> None:
    layout = read_layout(write_dataset(tmp_path / "set", "v3.0").root)
    assert [episode.first_row for episode in layout.episodes] == [0, 7, 0, 9, 12]
    assert layout.episodes[4].data_file == layout.root / "data/chunk-001/file-000.parquet"
    spans = [episode.videos["top"] for episode in layout.episodes]
    assert [span.from_timestamp for span in spans] == pytest.approx([0.0, 0.7, 1.2, 0.0, 0.3])
    assert len({span.path for span in spans}) == 2


def test_image_cameras_have_no_video(tmp_path: Path) -> None:
    layout = read_layout(write_dataset(tmp_path / "set", "v3.0", image_camera=True).root)
    assert layout.cameras["wrist"].storage is Storage.IMAGE
    assert list(layout.episodes[0].videos) == ["top"]


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no dataset directory .*nowhere; check the path"):
        read_layout(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"has no meta/info.json; name the directory"):
        read_layout(tmp_path)


INFO_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version": (lambda info: info.update(codebase_version="v1.6"), r"'v1.6', not one of v2.0, v2.1, v3.0"),
    "no version": (lambda info: info.pop("codebase_version"), r"codebase_version 'None'"),
    "fps": (lambda info: info.update(fps=0), r"fps 0; use a number above 0"),
    "no features": (lambda info: info.pop("features"), r"no `features` section"),
    "no shape": (
        lambda info: info["features"]["action"].pop("shape"),
        r"`action` lacks a `dtype` or a `shape`",
    ),
    "shape": (lambda info: info["features"]["action"].update(shape=[0]), r"`action` has the shape \[0\]"),
    "image shape": (
        lambda info: info["features"]["observation.images.top"].update(shape=[32, 64], names=None),
        r"camera `observation.images.top` has the shape \[32, 64\]",
    ),
    "same name": (
        lambda info: info["features"].update({"observation.top": info["features"]["observation.images.top"]}),
        r"both name the camera `top`",
    ),
    "template": (
        lambda info: info.update(data_path="data/{episode}.parquet"),
        r"unknown field `episode`; use episode_chunk and episode_index",
    ),
    "fps nan": (lambda info: info.update(fps=float("nan")), r"fps nan; use a number above 0"),
    "fps infinite": (lambda info: info.update(fps=float("inf")), r"fps inf; use a number"),
    "fps text": (lambda info: info.update(fps="10"), r"fps '10'; use a number"),
    "chunks": (
        lambda info: info.update(chunks_size="many"),
        r"chunks_size 'many'; it must be a whole number",
    ),
    "no chunks": (lambda info: info.update(chunks_size=0), r"chunks_size 0; it must be a whole number"),
    "huge format": (
        lambda info: info.update(data_path="{episode_chunk:>1000000000}"),
        r"format `>1000000000`; use zero padding .*`{episode_chunk:03d}`",
    ),
    "huge key format": (
        lambda info: info.update(video_path="{video_key:>1000000000}"),
        r"format `>1000000000`",
    ),
    "attributes": (
        lambda info: info.update(data_path="{episode_index.__class__}"),
        r"unknown field `episode_index.__class__`",
    ),
    "long": (lambda info: info.update(data_path="a" * 5_000), r"is longer than 1,000 characters"),
    "no text": (lambda info: info.update(data_path=5), r"path template must be a string, found 5"),
    "feature NUL": (
        lambda info: info["features"].update({"observation.a\0b": info["features"]["action"]}),
        r"feature 'observation.a\\x00b' cannot name a column",
    ),
    "feature path": (
        lambda info: info["features"].update({"observation.images.../../x": info["features"]["action"]}),
        r"cannot name a column or directory",
    ),
    "huge shape": (
        lambda info: info["features"]["action"].update(shape=[10**400]),
        r"more than 268,435,456 values per frame",
    ),
    "huge image": (
        lambda info: info["features"]["observation.images.top"].update(shape=[30_000, 30_000, 3]),
        r"more than (16,384 on a side|268,435,456 values)",
    ),
    "escape": (lambda info: info.update(data_path="../{episode_index}"), r"points outside the dataset"),
    "frames": (
        lambda info: info.update(total_frames=31),
        r"total_frames = 31, but the episode table adds up to 30",
    ),
    "episodes": (lambda info: info.update(total_episodes=4), r"total_episodes = 4, but .* adds up to 5"),
}


@pytest.mark.parametrize("fault", INFO_FAULTS)
def test_faults_in_info(tmp_path: Path, fault: str) -> None:
    change, message = INFO_FAULTS[fault]
    root = write_dataset(tmp_path / "set", "v2.1").root
    edit_json(root / "meta/info.json", change)
    with pytest.raises(DatasetError, match=message) as caught:
        read_layout(root)
    assert "info.json" in str(caught.value)


@pytest.mark.parametrize(
    "comment", ['{ // the header\n "fps": 10}', '{"fps": 10 // Hz\n}', '// all\n{"fps": 10}']
)
def test_comments_in_json_are_named(tmp_path: Path, comment: str) -> None:
    path = tmp_path / "meta/info.json"
    path.parent.mkdir()
    path.write_text(comment)
    with pytest.raises(DatasetError, match=r"info.json:1 has a `//` comment, which JSON does not allow"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"url": "http://example.org",\n "fps": }', r"info.json:2 is not valid JSON"),
        ("[1]", r"must be a JSON object, found list"),
        ("", r"is empty"),
        (POINTER, r"git-LFS pointer.*run `git lfs pull`"),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "meta/info.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"episode_index": 0}], r"needs an `episode_index` and a `length`"),
        ([{"episode_index": 0, "length": 0}], r"episode 0 has the length 0"),
        ([{"episode_index": 0, "length": 30, "tasks": None}], r"episode 0 has no value for `tasks`"),
        ([{"episode_index": 0, "length": 15}] * 2, r"contain episode 0 twice"),
        ([], r"is empty"),
    ],
)
def test_faults_in_the_episode_table(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    write_lines(root / "meta/episodes.jsonl", rows)
    with pytest.raises(DatasetError, match=message):
        read_layout(root)


def test_a_broken_line_is_numbered(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.0").root
    path = root / "meta/tasks.jsonl"
    path.write_text(path.read_text() + '{"task_index": 2, // new\n')
    with pytest.raises(DatasetError, match=r"tasks.jsonl:3 has a `//` comment"):
        read_layout(root)
    write_lines(path, [{"task_index": 0}])
    with pytest.raises(DatasetError, match=r"every task needs a whole `task_index` and a text"):
        read_layout(root)


def test_faults_in_v3_metadata(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    episodes, tasks = root / "meta/episodes/chunk-000/file-000.parquet", root / "meta/tasks.parquet"
    rewrite_parquet(tasks, lambda table: table.drop_columns("__index_level_0__"))
    with pytest.raises(DatasetError, match=r"tasks.parquet has no column with the task texts"):
        read_layout(root)
    rewrite_parquet(tasks, lambda table: table.append_column("text", pa.array(TASKS)))
    assert read_layout(root).tasks == dict(enumerate(TASKS))
    column = "videos/observation.images.top/from_timestamp"
    rewrite_parquet(episodes, lambda table: table.drop_columns(column))
    with pytest.raises(DatasetError, match=rf"has no column `{column}`, only"):
        read_layout(root)
    episodes.write_bytes(episodes.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"not a readable parquet file .*truncated"):
        read_layout(root)
    for path in root.glob("meta/episodes/*/*"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"no chunk-\*/file-\*.parquet, which format v3.0 needs"):
        read_layout(root)


@pytest.mark.parametrize("name", ["meta/tasks.jsonl", "meta/episodes.jsonl"])
def test_missing_tables(tmp_path: Path, name: str) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    (root / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name} is missing"):
        read_layout(root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"fps": ' + "9" * 5_000 + "}", "a number with too many digits"),
        ('{"a": ' * 100_000, "nested too deeply"),
    ],
)
def test_json_that_python_cannot_hold(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(text)
    with pytest.raises(DatasetError, match=rf"info.json:1 is not usable JSON \({reason}"):
        read_layout(tmp_path)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
def test_pipes_and_devices_are_not_opened(tmp_path: Path, name: str) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    for make, what in ((os.mkfifo, "a named pipe"), (lambda path: path.symlink_to("/dev/zero"), "a device")):
        (root / name).unlink()
        make(root / name)
        with pytest.raises(DatasetError, match=rf"{name} is {what}"):
            read_layout(root)


def test_texts_of_parquet_tables_that_are_not_utf8(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    texts = pa.array([b"\xf8\xff", b"open"]).cast(pa.binary()).view(pa.string())
    rewrite_parquet(root / "meta/tasks.parquet", lambda _: pa.table({"task_index": [0, 1], "task": texts}))
    with pytest.raises(DatasetError, match=r"tasks.parquet is not a readable parquet file"):
        read_layout(root)


def test_tasks_that_are_numbers(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": 5}])
    with pytest.raises(
        DatasetError, match=r"every task needs a whole `task_index` and a text, found 0 and 5"
    ):
        read_layout(root)
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": 0, "length": 30, "tasks": 5}])
    with pytest.raises(DatasetError, match=r"episode 0 has the tasks 5, which is not a list of texts"):
        read_layout(root)
