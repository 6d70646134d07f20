"""Each planted fault is found at its place, with a cure; a sound set is called sound."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from policysmith.builder.data.doctor.examination import examine
from policysmith.builder.data.doctor.findings import Severity
from policysmith.builder.data.writing.writer import LeRobotWriter
from policysmith.schemas import console

from .synthetic import (
    FPS,
    HEIGHT,
    VERSIONS,
    WIDTH,
    edit_json,
    encode,
    picture,
    rewrite_parquet,
    write_dataset,
)

LENGTHS = (40, 44, 42, 48, 40, 46, 44, 42)
TOP = "observation.images.top"


def write_moving(root: Path, change: Callable[[int, dict[str, np.ndarray]], None] = lambda *_: None) -> Path:
    """Write episodes of a robot that follows smooth paths and switches its gripper, seen by two cameras."""
    generator = np.random.default_rng(0)
    scenes = {
        name: generator.integers(0, 255, (3, HEIGHT, WIDTH), dtype=np.uint8) for name in ("top", "wrist")
    }
    vectors = {"action": ["x", "y", "gripper"], "observation.state": ["x", "y", "gripper"]}
    with LeRobotWriter(
        root, fps=FPS, cameras=dict.fromkeys(scenes, (HEIGHT, WIDTH)), vectors=vectors
    ) as writer:
        for episode, length in enumerate(LENGTHS):
            angle = generator.uniform(0, 6) + generator.uniform(0.1, 0.2) * np.arange(length)
            circle = np.column_stack([np.sin(angle), np.cos(1.3 * angle)])
            path = np.column_stack([generator.uniform(0.8, 1.0) * circle, np.arange(length) > length / 2])
            late = np.concatenate([path[:1], path[:-1]])
            frames = {"action": path.astype(np.float32), "observation.state": late.astype(np.float32)}
            for name, scene in scenes.items():
                moved = [np.roll(scene, 2 * step, 2) for step in range(length)]
                frames[f"observation.images.{name}"] = np.stack(moved) // (1 + (name == "wrist"))
            change(episode, frames)
            writer.add_episode("go", frames)
    return root


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sound_set_has_no_errors(tmp_path: Path, version: str) -> None:
    found = examine(write_dataset(tmp_path / "set", version).root, every_frame=True)
    assert [finding.text for finding in found if finding.severity is Severity.ERROR] == []


def test_a_good_recording_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_moving(tmp_path / "set")
    assert [finding.text for finding in examine(root, every_frame=True)] == []
    assert console.policysmith(["data", "check", str(root)]) == 0
    assert "is sound" in capsys.readouterr().out


def idle(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode in (1, 4):
        frames["action"][:12] = frames["action"][12]


def jump(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode == 5:
        frames["action"][20, 0] += 3.0


def constant(episode: int, frames: dict[str, np.ndarray]) -> None:
    frames["action"][:, 2] = 1.0


def clipped(episode: int, frames: dict[str, np.ndarray]) -> None:
    frames["action"][:, 1] = frames["action"][:, 1].clip(-0.15, 10.0)


def huge(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode == 3:
        frames["observation.state"][7, 1] = 1e6


def absurd(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode == 3:
        frames["observation.state"][7, 1] = 1e28


def clock(episode: int, frames: dict[str, np.ndarray]) -> None:
    """Seconds since 1970, in float32."""
    frames["observation.state"][:, 1] = 1.79e9 + 1000.0 * episode + np.arange(len(frames["action"])) / 10


def lag(episode: int, frames: dict[str, np.ndarray]) -> None:
    frames["observation.state"][6:] = frames["observation.state"][:-6].copy()


def early(episode: int, frames: dict[str, np.ndarray]) -> None:
    frames["observation.state"][:-3] = frames["observation.state"][3:].copy()


def repeated(episode: int, frames: dict[str, np.ndarray], held: dict[str, np.ndarray] = {}) -> None:  # noqa: B006
    if episode == 0:
        held |= frames
    elif episode == 4:  # as long as the first
        frames |= {key: held[key] for key in ("action", "observation.state")}


def frozen(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode == 2:
        frames[TOP][:] = frames[TOP][0]


def dark(episode: int, frames: dict[str, np.ndarray]) -> None:
    frames[TOP][:] = 1


def swapped(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode == 6:
        wrist = "observation.images.wrist"
        frames[TOP], frames[wrist] = frames[wrist], frames[TOP]


def long(episode: int, frames: dict[str, np.ndarray]) -> None:
    if episode == 7:
        for key, values in frames.items():
            frames[key] = np.concatenate([values, *[values[::-1], values] * 2])


DOUBTS = {
    idle: (
        "idle start",
        r"2 episodes \(1, 4\) begin with a robot that stands still, for 1\.\d s.*`data.trim",
    ),
    jump: ("jump", r"`x` jumps by \d+% of its range after frame 19 of episode 5"),
    constant: ("constant action", r"`gripper` never changes"),
    clipped: ("saturated action", r"`y` is at its lower limit, -0.15, in \d\d% of the frames"),
    huge: ("huge value", r"`observation.state` has the value 1e\+06 in dimension 1 of frame 7 of episode 3"),
    absurd: (
        "unusable column",
        r"`observation.state` has the value 1e\+28 in episode 3, frame 7, dimension 1",
    ),
    clock: (
        "unusable column",
        r"`observation.state` ranges from 1.79e\+09 to 1.79\d+e\+09 in dimension 1, where float32 has steps of 128",
    ),
    lag: ("lag", r"the state follows the action after 7 frames, 0.70 s"),
    early: ("lag", r"the state moves 2 frames, 0.20 s, before the action"),
    repeated: ("duplicate", r"episode 4 repeats episode 0, and 1 repeat another"),
    frozen: ("frozen camera", r"camera `top` shows the same image throughout in episode 2"),
    dark: ("dark camera", r"camera `top` is black in 8 episodes"),
    swapped: ("swapped cameras", r"`top` and `wrist` seem swapped in episode 6"),
    long: ("outlier", r"episode 7 differ much in length"),
}


@pytest.mark.parametrize("plant", DOUBTS, ids=lambda plant: plant.__name__)
def test_what_trains_badly_is_found(tmp_path: Path, plant: Callable[..., None]) -> None:
    kind, text = DOUBTS[plant]
    root = write_moving(tmp_path / "set", plant)
    (found,) = [finding for finding in examine(root) if finding.kind == kind]
    assert found.severity is Severity.WARNING
    assert re.search(text, found.text), found.text
    assert console.policysmith(["data", "check", str(root)]) == 1


def video(root: Path, episode: int = 1) -> Path:
    return root / f"videos/chunk-000/{TOP}/episode_{episode:06d}.mp4"


def rows(root: Path, episode: int = 1) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def times(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    def with_times(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("timestamp")
        changed = pa.array(change(table["timestamp"].to_numpy()).astype(np.float32))
        return table.set_column(place, "timestamp", changed)

    rewrite_parquet(rows(root), with_times)


def film(root: Path, **options: Any) -> None:
    encode(video(root), (picture(code) for code in range(5)), **options)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_finite(root: Path) -> None:
    def with_nan(table: pa.Table) -> pa.Table:
        values = np.asarray(table["action"].to_pylist(), np.float32)
        values[2, 1] = np.nan
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
        return table.set_column(table.schema.get_field_index("action"), "action", column)

    rewrite_parquet(rows(root), with_nan)


def wide(root: Path) -> None:
    film(root)
    big = np.zeros((2048, 4096, 3), np.uint8)
    encode(video(root), [big] * 5)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "times late": (lambda r: times(r, lambda t: t + 0.05), "episode 1 has the `timestamp` 0.05 s"),
    "times reversed": (lambda r: times(r, lambda t: t[::-1]), "episode 1 has the `timestamp` 0.4 s"),
    "times drift": (lambda r: times(r, lambda t: t * 1.02 + (t > 0.2) * 0.04), "`timestamp`"),
    "video fast": (lambda r: film(r, rate=2 * FPS), "has 20 frames per second, not the 10"),
    "video short": (lambda r: encode(video(r), map(picture, range(3))), "has 3 frames"),
    "video long": (lambda r: encode(video(r), map(picture, range(30))), "has 30 frames"),
    "video cut": (lambda r: cut(video(r)), "download"),
    "video empty": (lambda r: video(r).write_bytes(b""), "is empty"),
    "video noise": (lambda r: video(r).write_bytes(bytes(range(256)) * 20), "cannot be decoded"),
    "video missing": (lambda r: video(r).unlink(), "is missing"),
    "video a pipe": (lambda r: pipe(video(r)), "is a named pipe"),
    "video endless": (lambda r: endless(video(r)), "is a device"),
    "video wide": (wide, "has 2048 x 4096 pixels"),
    "video a pointer": (lambda r: video(r).write_bytes(b"version https://git-lfs"), "git lfs pull"),
    "rows cut": (lambda r: cut(rows(r)), "not a readable parquet file"),
    "rows missing": (lambda r: rows(r).unlink(), "is missing"),
    "rows a pipe": (lambda r: pipe(rows(r)), "is a named pipe"),
    "rows too few": (lambda r: rewrite_parquet(rows(r), lambda t: t.slice(0, 3)), "has 3 rows"),
    "rows not finite": (not_finite, "`action` has the value nan in episode 1, frame 2, dimension 1"),
    "rows of another": (lambda r: shutil.copy(rows(r, 2), rows(r)), "rows"),
}


@pytest.mark.parametrize("plant", FAULTS)
def test_every_fault_of_a_file_is_found_with_its_episode(tmp_path: Path, plant: str) -> None:
    change, text = FAULTS[plant]
    root = write_dataset(tmp_path / "set", "v2.1").root
    change(root)
    errors = [finding for finding in examine(root) if finding.severity is Severity.ERROR]
    assert [finding.episodes for finding in errors] == [(1,)], errors
    assert text in errors[0].text
    assert any(sign in errors[0].text for sign in (";", ". "))  # the cure
    assert console.policysmith(["data", "check", str(root)]) == 4


def test_several_faults_are_all_told(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    for name, episode in (("video cut", 0), ("rows cut", 3)):
        path = video(root, episode) if name == "video cut" else root / "data/chunk-001/episode_000003.parquet"
        cut(path)
    found = [f for f in examine(root) if f.severity is Severity.ERROR]
    assert [(finding.kind, finding.episodes) for finding in found] == [("rows", (3,)), ("frames", (0,))]


def test_damage_inside_a_video_is_found_when_every_frame_is_decoded(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(60,)).root
    noise = np.random.default_rng(0).integers(0, 255, (60, HEIGHT, WIDTH, 3), dtype=np.uint8)
    encode(video(root, 0), noise)
    content = bytearray(video(root, 0).read_bytes())
    start = len(content) // 5
    content[start : start + 4000] = bytes(4000)
    video(root, 0).write_bytes(content)
    assert any("the file is damaged" in finding.text for finding in examine(root, every_frame=True))


def test_broken_metadata_is_one_finding(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    edit_json(root / "meta/info.json", lambda info: info.update(fps=0))
    (found,) = examine(root)
    assert "has the fps 0" in found.text
