"""HDF5 of robomimic and ACT and zarr of Diffusion Policy become LeRobot datasets with the same numbers and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.writing import convert as conversion
from policysmith.builder.data.writing.convert import convert
from policysmith.schemas import console
from policysmith.schemas.errors import DatasetError

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

LENGTHS = (6, 4, 5)
GENERATOR = np.random.default_rng(0)
ACTIONS = [GENERATOR.normal(size=(n, 3)).astype(np.float32) for n in LENGTHS]
STATES = [GENERATOR.normal(size=(n, 5)).astype(np.float32) for n in LENGTHS]
IMAGES = [
    np.repeat(np.arange(20, 20 + 9 * n, 9), 16 * 16 * 3).reshape(n, 16, 16, 3).astype(np.uint8)
    for n in LENGTHS
]


def robomimic(folder: Path) -> Path:
    with h5py.File(folder / "demo.hdf5", "w") as file:
        for e in reversed(range(len(LENGTHS))):
            demo = file.create_group(f"data/demo_{e}")
            demo["actions"], demo["obs/state"], demo["obs/agentview_image"] = ACTIONS[e], STATES[e], IMAGES[e]
    return folder / "demo.hdf5"


def act(folder: Path) -> Path:
    for e in range(len(LENGTHS)):
        with h5py.File(folder / f"episode_{e}.hdf5", "w") as file:
            file["action"], file["observations/qpos"] = ACTIONS[e], STATES[e]
            file["observations/images/agentview"] = IMAGES[e]
    return folder


def diffusion(folder: Path) -> Path:
    root = zarr.open_group(folder / "pusht.zarr", mode="w", zarr_format=2)
    root["data/action"], root["data/agent_pos"] = np.concatenate(ACTIONS), np.concatenate(STATES)
    root["data/agentview"] = np.concatenate(IMAGES).astype(np.float32)
    root["meta/episode_ends"] = np.cumsum(LENGTHS)
    return folder / "pusht.zarr"


@pytest.mark.parametrize("write", [robomimic, act, diffusion])
def test_numbers_and_images_are_the_same(
    tmp_path: Path, write: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    source = write(tmp_path / "source")
    words = [
        "data",
        "convert",
        str(source),
        "--output",
        str(tmp_path / "set"),
        "--fps",
        "20",
        "--task",
        "push",
    ]
    assert console.policysmith(words) == 0
    assert "3 episodes" in capsys.readouterr().out
    dataset = LeRobotDataset(tmp_path / "set")
    assert dataset.episode_lengths == LENGTHS
    assert dataset.fps == 20
    for index, (action, state, image) in enumerate(
        zip(*map(np.concatenate, (ACTIONS, STATES, IMAGES)), strict=True)
    ):
        sample = dataset[index]
        assert np.array_equal(sample["action"][0], action)
        assert np.array_equal(sample["observation.state"][0], state)
        seen = sample["observation.images.agentview"][0].numpy().transpose(1, 2, 0)
        assert np.abs(seen.astype(int) - image).max() <= 3  # of the video
        assert sample["task"] == "push"


def without_actions(folder: Path) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        file["data/demo_0/obs/state"] = STATES[0]
    return folder / "a.hdf5"


def of_other_lengths(folder: Path) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/state"] = ACTIONS[0], STATES[1]
    return folder / "a.hdf5"


def of_another_layout(folder: Path) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        file["rewards"] = STATES[0]
    return folder / "a.hdf5"


def no_hdf5(folder: Path) -> Path:
    (folder / "a.hdf5").write_bytes(b"text")
    return folder / "a.hdf5"


def a_text(folder: Path) -> Path:
    (folder / "a.txt").write_text("text")
    return folder / "a.txt"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (without_actions, r"cannot be read"),
        (of_other_lengths, r"demo_0 has columns of different lengths"),
        (of_another_layout, r"has `rewards`, and neither"),
        (no_hdf5, r"cannot be read .*copy it again"),
        (a_text, r"neither HDF5 .* nor zarr"),
        (lambda folder: folder / "nothing", r"is missing"),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DatasetError, match=message):
        convert(write(tmp_path / "source"), tmp_path / "set", fps=10, task="push")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("eye_image", np.full((4, 8, 8, 3), 3_000, np.uint16), "uint16 images with values from 3000 to 3000"),
        ("eye_image", np.full((4, 8, 8, 3), -0.5, np.float32), "float32 images with values from -0.5"),
        ("eye_image", np.full((4, 8, 8, 3), np.nan, np.float32), "values from nan"),
        ("left/pose", np.zeros((4, 2)), "two groups below /data/demo_0/obs have an array `pose`"),
        ("none", np.zeros((0, 2)), "`none` has no rows"),
    ],
)
def test_nothing_is_clipped_and_nothing_lost(
    tmp_path: Path, name: str, values: np.ndarray, said: str
) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["data/demo_0/actions"], file["data/demo_0/obs/right/pose"] = np.zeros((4, 3)), np.zeros((4, 2))
        file[f"data/demo_0/obs/{name}"] = values
    with pytest.raises(DatasetError, match=said):
        convert(tmp_path / "demo.hdf5", tmp_path / "out", fps=10, task="t")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    source = robomimic(tmp_path)
    monkeypatch.setattr(conversion, "import_module", absent)
    with pytest.raises(DatasetError, match=r"needs the package h5py; pip install 'policysmith\[convert\]'"):
        convert(source, tmp_path / "set", fps=10, task="push")
