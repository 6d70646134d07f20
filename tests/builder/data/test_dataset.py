"""Samples agree, frame by frame, with what was written to disk."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from policysmith.builder.data.dataset import LeRobotDataset, inspect
from policysmith.builder.data.lerobot import table
from policysmith.builder.data.lerobot.layout import read_layout
from policysmith.schemas.errors import DatasetError

from .synthetic import HEIGHT, TASKS, VERSIONS, WIDTH, Synthetic, edit_json, encode, read_code, write_dataset


def expected_rows(data: Synthetic, frame: int, offsets: list[int]) -> tuple[list[int], list[bool]]:
    """Clamp one offset after another, the slow and plain way."""
    episode = max(e for e, start in enumerate(data.starts) if start <= frame)
    first, last = data.starts[episode], data.starts[episode] + data.lengths[episode] - 1
    rows, pad = [], []
    for offset in offsets:
        wanted = frame + offset
        pad.append(wanted < first or wanted > last)
        rows.append(first if wanted < first else min(wanted, last))
    return rows, pad


@pytest.mark.parametrize("image_camera", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_sample_agrees_with_what_was_written(tmp_path: Path, version: str, image_camera: bool) -> None:
    data = write_dataset(tmp_path / "set", version, image_camera=image_camera)
    seen, done = [-2, 0, 1], [-1, 0, 1, 2, 3, 4]
    dataset = LeRobotDataset(data.root, observation_indices=seen, action_indices=done)
    assert len(dataset) == sum(data.lengths)
    for frame in range(len(dataset)):
        sample = dataset[frame]
        rows, _ = expected_rows(data, frame, seen)
        for camera in data.cameras:
            images = sample[f"observation.images.{camera}"]
            assert images.dtype == torch.uint8
            assert [read_code(image.numpy()) for image in images] == [data.code(camera, row) for row in rows]
        for key, values in data.columns.items():
            if key != "action":
                assert sample[key].dtype == torch.float32
                np.testing.assert_array_equal(sample[key].numpy(), values[rows])
        rows, pad = expected_rows(data, frame, done)
        np.testing.assert_array_equal(sample["action"].numpy(), data.columns["action"][rows])
        assert sample["action_is_pad"].tolist() == pad
        assert sample["task"] == TASKS[data.task_index[frame]]
        assert sample["index"].item() == frame
        assert sample["index"].dtype == torch.int64
        for key, value in sample.items():
            if key != "task":
                assert dataset.shape(key) == tuple(value.shape)


@pytest.mark.parametrize("version", VERSIONS)
def test_chosen_episodes_keep_their_dataset_wide_index(tmp_path: Path, version: str) -> None:
    data = write_dataset(tmp_path / "set", version)
    dataset = LeRobotDataset(data.root, cameras=["wrist"], episodes=[4, 1], action_indices=[0, 1])
    assert dataset.episodes == (1, 4)
    assert dataset.episode_lengths == (5, 6)
    frames = [*range(7, 12), *range(24, 30)]
    for position, frame in enumerate(frames):
        sample = dataset[position]
        assert sample["index"].item() == frame
        assert read_code(sample["observation.images.wrist"][0].numpy()) == data.code("wrist", frame)
        assert "observation.images.top" not in sample
        assert sample["action_is_pad"].tolist() == expected_rows(data, frame, [0, 1])[1]


def test_public_properties(tmp_path: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "set", "v3.0").root)
    assert dataset.cameras == ("top", "wrist")
    assert dataset.fps == 10.0
    assert dataset.features["action"].names == ("dx", "dy")
    assert dataset[-1]["index"].item() == len(dataset) - 1
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    with pytest.raises(DatasetError, match="samples have no tensor `reward`"):
        dataset.shape("reward")


def test_colours_come_as_rgb(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", "v2.1", lengths=(2,))
    red = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    red[..., 0] = 255
    encode(data.root / "videos/chunk-000/observation.images.top/episode_000000.mp4", [red, red])
    image = LeRobotDataset(data.root, cameras=["top"])[0]["observation.images.top"][0].float()
    assert image[0].mean() > 200
    assert image[1:].mean() < 50


def test_a_set_without_cameras_needs_no_cache(tmp_path: Path, frame_cache: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "set", "v2.1").root, cameras=[])
    assert not any(key.startswith("observation.images") for key in dataset[0])
    assert not frame_cache.exists()


def test_a_camera_outside_the_images_prefix_gets_a_name(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", "v2.1", image_camera=True)

    def rename(info: dict) -> None:
        info["features"]["observation.image"] = info["features"].pop("observation.images.top")

    edit_json(data.root / "meta/info.json", rename)
    for video in data.root.glob("videos/*/observation.images.top"):
        video.rename(video.with_name("observation.image"))
    dataset = LeRobotDataset(data.root, cameras=["image"])
    assert read_code(dataset[3]["observation.images.image"][0].numpy()) == 3


def test_unknown_camera_and_episode(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    with pytest.raises(DatasetError, match="no camera `wrost`, only `top`, `wrist`; did you mean `wrist`"):
        LeRobotDataset(root, cameras=["wrost"])
    with pytest.raises(DatasetError, match="duplicate"):
        LeRobotDataset(root, cameras=["top", "top"])
    with pytest.raises(DatasetError, match=r"no episode 9; choose among its 5 episodes, 0 to 4"):
        LeRobotDataset(root, episodes=[1, 9])
    with pytest.raises(DatasetError, match="duplicate"):
        LeRobotDataset(root, episodes=[1, 1])
    with pytest.raises(DatasetError, match="choose at least one"):
        LeRobotDataset(root, episodes=[])
    with pytest.raises(DatasetError, match="at least one observation index"):
        LeRobotDataset(root, observation_indices=[])


def test_pickling_leaves_the_frames_in_the_cache(tmp_path: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "set", "v3.0").root)
    before = dataset[3]
    content = pickle.dumps(dataset)
    assert len(content) < 40_000
    after = pickle.loads(content)[3]
    assert before.keys() == after.keys()
    assert torch.equal(before["observation.images.top"], after["observation.images.top"])


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_dataset_directory_is_never_written_to(tmp_path: Path, version: str) -> None:
    root = write_dataset(tmp_path / "set", version, image_camera=True).root
    before = snapshot(root)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for path in root.rglob("*"):
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        dataset = LeRobotDataset(root)
        for position in range(len(dataset)):
            dataset[position]
        assert dataset.fingerprint
        inspect(root)
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)
    assert snapshot(root) == before


def test_a_cache_inside_the_dataset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    monkeypatch.setenv("POLICYSMITH_CACHE", str(root / "cache"))
    with pytest.raises(DatasetError, match="is inside the dataset"):
        LeRobotDataset(root)
    assert not (root / "cache").exists()


def test_fingerprint_covers_what_is_used_and_nothing_else(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    whole = LeRobotDataset(root).fingerprint
    assert len(whole) == 64
    assert LeRobotDataset(root, action_indices=range(4)).fingerprint == whole
    part = LeRobotDataset(root, cameras=["top"], episodes=[0, 1]).fingerprint
    assert part != whole
    assert LeRobotDataset(root, cameras=["top"], episodes=[0]).fingerprint != part

    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    assert LeRobotDataset(moved).fingerprint == whole
    video = moved / "videos/chunk-000/observation.images.top/episode_000002.mp4"
    encode(video, [np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)] * 9)
    assert LeRobotDataset(moved).fingerprint != whole
    assert LeRobotDataset(moved, cameras=["top"], episodes=[0, 1]).fingerprint == part


def test_fingerprint_tells_episodes_of_one_file_apart(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    prints = {LeRobotDataset(root, cameras=[], episodes=chosen).fingerprint for chosen in ([0], [1], [0, 1])}
    assert len(prints) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_inspect_reads_metadata_only(tmp_path: Path, version: str) -> None:
    data = write_dataset(tmp_path / "set", version)
    shutil.rmtree(data.root / "data")
    shutil.rmtree(data.root / "videos")
    info = inspect(data.root)
    assert info.cameras == {"top": (HEIGHT, WIDTH), "wrist": (HEIGHT, WIDTH)}
    assert info.vectors == {
        "observation.state": 3,
        "observation.environment_state": 4,
        "observation.touch": 1,
    }
    assert (info.state_dim, info.action_dim) == (3, 2)
    assert info.state_names == ("x", "y", "gripper")
    assert info.action_names == ("dx", "dy")
    assert info.episodes == (0, 1, 2, 3, 4)
    assert info.episode_lengths == data.lengths
    assert info.tasks == TASKS
    assert (info.fps, info.codebase_version) == (10.0, version)


def test_dimensions_without_names_are_numbered(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.0").root
    edit_json(root / "meta/info.json", lambda info: info["features"]["action"].update(names=["only one"]))
    assert inspect(root).action_names == ("action_0", "action_1")


@pytest.mark.parametrize("rows", [1, 8, 1_000])
def test_files_read_together_or_one_by_one_give_the_same_table(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "set", "v2.1")
    monkeypatch.setattr(table, "_ROWS_AT_ONCE", rows)
    layout = read_layout(data.root)
    read = table.read_table(layout, [layout.episodes[i] for i in (3, 0, 4)])
    chosen = np.concatenate([np.arange(data.starts[i], data.starts[i] + data.lengths[i]) for i in (3, 0, 4)])
    for key, values in data.columns.items():
        np.testing.assert_array_equal(read.columns[key], values[chosen])
    assert (read.episodes, read.lengths, read.first_rows) == ((3, 0, 4), (3, 7, 6), (0, 3, 10))
