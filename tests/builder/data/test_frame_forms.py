"""Every form of the frames yields the same samples; the choice, the room in the cache and the open files."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.frames import choice as choices
from policysmith.builder.data.frames import room as rooms
from policysmith.builder.data.frames import streaming
from policysmith.builder.data.frames.choice import FrameChoice, FrameForm
from policysmith.builder.data.frames.room import entries
from policysmith.builder.data.frames.stored import Shrink
from policysmith.schemas.errors import DatasetError

from .synthetic import HEIGHT, VERSIONS, WIDTH, encode, picture, read_code, write_dataset

KEY = "observation.images.top"
HALF = Shrink(
    "every second pixel", (HEIGHT // 2, WIDTH // 2), lambda frame: frame[::2, ::2].transpose(2, 0, 1)
)


def opened(root: Path, form: FrameForm, **options: Any) -> LeRobotDataset:
    return LeRobotDataset(
        root, frames=FrameChoice(form), observation_indices=[-3, 0], action_indices=range(5), **options
    )


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)

    return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("image_camera", [False, True], ids=["videos", "videos and images"])
@pytest.mark.parametrize("version", VERSIONS)
def test_streamed_samples_equal_raw_ones_to_the_bit_in_any_order(
    tmp_path: Path, version: str, image_camera: bool
) -> None:
    root = write_dataset(tmp_path / "set", version, image_camera=image_camera).root
    raw, streamed = opened(root, "raw"), opened(root, "stream")
    assert raw.fingerprint == streamed.fingerprint
    for index in [*range(len(raw)), *np.random.default_rng(0).permutation(len(raw)).tolist()]:
        assert equal(raw[index], streamed[index])
    assert all(raw.shape(key) == streamed.shape(key) for key in (KEY, "action"))


def test_threads_and_forked_processes_stream_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_OPEN_DECODERS", 2)
    root = write_dataset(tmp_path / "set", "v2.1").root
    raw, streamed = opened(root, "raw"), opened(root, "stream")
    order = np.random.default_rng(1).permutation(len(raw)).tolist() * 2
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda i: equal(raw[i], streamed[i]), order))
    streamed[7]  # leaves open decoders, whose position in the file a child would share
    context = get_context("fork")
    failed = context.Value("i", 0)

    def read_all() -> None:
        torch.set_num_threads(1)  # those of the parent are gone
        failed.value += sum(not equal(raw[i], streamed[i]) for i in order[:15])

    children = [context.Process(target=read_all) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert failed.value == 0


def test_the_shrunk_frames_are_what_the_function_makes_of_raw_ones(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    raw = LeRobotDataset(root, frames=FrameChoice("raw"))
    small = LeRobotDataset(root, frames=FrameChoice("resized", {"top": HALF}))
    assert small.shape(KEY) == (1, 3, HEIGHT // 2, WIDTH // 2)
    for index in range(len(raw)):
        assert torch.equal(small[index][KEY], raw[index][KEY][..., ::2, ::2])
        assert torch.equal(small[index]["observation.images.wrist"], raw[index]["observation.images.wrist"])
    with pytest.raises(DatasetError, match="no camera has a `resize`"):
        LeRobotDataset(root, frames=FrameChoice("resized"))


def test_a_policy_learns_the_same_from_every_form(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Its first transform shrinks the images, which a store of resized ones has done."""
    tiny["transforms"] = [{"type": "resize", "size": [24, 24]}, *tiny["transforms"]]
    tiny["training"] |= {"steps": 3, "workers": 2, "schedule": {"type": "constant"}}
    trained, seen = {}, {}
    for form in ("raw", "resized", "stream"):
        tiny["data"]["frames"] = form
        builder = Builder.from_recipe(tiny)
        seen[form] = tuple(builder.datasets()[0][0]["observation.images.corner2"].shape[-2:])
        trained[form] = builder.train(output=tmp_path / form, device="cpu").policy.state_dict()
    assert seen == {"raw": (96, 96), "resized": (24, 24), "stream": (96, 96)}
    builder = Builder.from_recipe(tiny)
    builder.override({"training.steps": 2, "data.frames": "raw"}).train(
        output=tmp_path / "other", device="cpu"
    )
    resumed = builder.train(output=tmp_path / "other", device="cpu", resume=True)
    trained["resumed as a stream"] = resumed.policy.state_dict()
    for form in ("resized", "stream", "resumed as a stream"):
        assert all(torch.equal(value, trained["raw"][key]) for key, value in trained[form].items())


def test_a_random_crop_is_not_stored(tiny: dict[str, Any]) -> None:
    """Stored frames would be cropped in one place for ever."""
    tiny["transforms"] = [{"type": "crop", "size": [64, 64]}, *tiny["transforms"]]
    tiny["data"]["frames"] = "resized"
    with pytest.raises(DatasetError, match="no camera has a `resize`"):
        Builder.from_recipe(tiny).datasets()


Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize(
    ("memory", "free", "shrinks", "expected"),
    [
        (1e6, 1e6, {}, "raw"),
        (3e5, 1e6, {}, "stream"),
        (1e6, 1e5, {}, "stream"),
        (7.5e5, 1e6, {"top": HALF}, "raw"),
        (5e5, 1e6, {"top": HALF}, "resized"),
        (1e6, 2.5e5, {"top": HALF}, "resized"),
        (3e5, 1e6, {"top": HALF}, "stream"),
    ],
)
def test_the_form_is_chosen_by_memory_and_disk_with_its_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    memory: float,
    free: float,
    shrinks: dict[str, Shrink],
    expected: str,
) -> None:
    """The two cameras of 30 frames take 368,640 bytes raw, and 230,400 with one of them shrunk."""
    root = write_dataset(tmp_path / "set", "v3.0").root
    monkeypatch.setattr(choices, "memory_size", lambda: memory)
    monkeypatch.setattr(rooms.shutil, "disk_usage", lambda path: Disk(free, 0, free / (1 - rooms.SPARE)))
    caplog.set_level(logging.INFO)
    decided = []
    decide = FrameChoice.decide
    monkeypatch.setattr(FrameChoice, "decide", lambda *a: decided.append(decide(*a)) or decided[-1])
    LeRobotDataset(root, frames=FrameChoice("auto", shrinks))
    assert decided == [expected]
    if expected == "stream":
        reason = "half of the memory" if memory < 5e5 else "the room in"
        assert "`data.frames: stream`" in caplog.text
        assert reason in caplog.text


def test_the_least_recently_used_entries_make_room_unless_they_are_in_use(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [
        write_dataset(tmp_path / name, "v3.0", lengths=(1, 1, 2, size)).root
        for name, size in (("a", 5), ("b", 6), ("c", 7))
    ]
    a, b = (LeRobotDataset(root, cameras=["top"]) for root in sets[:2])
    assert len(entries(frame_cache)) == 3  # one video is the same in both
    assert all(entry.leased for entry in entries(frame_cache))
    used = {entry.directory for entry in entries(frame_cache)}
    monkeypatch.setenv("POLICYSMITH_CACHE_SIZE", "140KB")
    with pytest.raises(DatasetError, match=r"has room for .*`data.frames: stream`"):
        LeRobotDataset(sets[2], cameras=["top"], frames=FrameChoice("raw"))
    del a
    for index, entry in enumerate(entries(frame_cache)):
        os.utime(entry.directory / "index.json", (index, index))
    c = LeRobotDataset(sets[2], cameras=["top"], frames=FrameChoice("raw"))
    left = entries(frame_cache)
    assert sum(entry.bytes for entry in left) <= 140_000
    assert len(used - {entry.directory for entry in left}) == 1
    assert [read_code(d[i][KEY][0].numpy()) for d in (b, c) for i in range(len(d))] == [
        *range(10),
        *range(11),
    ]


def test_a_limit_that_is_no_size_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICYSMITH_CACHE_SIZE", "much")
    with pytest.raises(DatasetError, match="POLICYSMITH_CACHE_SIZE is 'much', not a size"):
        LeRobotDataset(write_dataset(tmp_path / "set", "v3.0").root)


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("form", ["raw", "stream"])
def test_files_of_any_number_are_read_with_few_descriptors(tmp_path: Path, form: FrameForm) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(2,) * 60).root
    with descriptors(len([*Path("/proc/self/fd").iterdir()]) + 60):
        dataset = LeRobotDataset(root, frames=FrameChoice(form))
        codes = [read_code(dataset[i][KEY][0].numpy()) for i in range(len(dataset))]
    assert codes == list(range(120))


def test_a_video_damaged_inside_names_the_frame(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", "v2.1", lengths=(40,))
    path = data.root / f"videos/chunk-000/{KEY}/episode_000000.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (40, HEIGHT, WIDTH, 3), dtype=np.uint8)
    encode(path, noise)
    dataset = LeRobotDataset(data.root, cameras=["top"], frames=FrameChoice("stream"))
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"episode_000000.mp4: frame \d+, at .* s, .*copy it again"):
        list(map(dataset.__getitem__, range(40)))


def test_a_video_shortened_after_it_was_indexed_names_the_frame(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", "v2.1", lengths=(20,))
    path = data.root / f"videos/chunk-000/{KEY}/episode_000000.mp4"
    dataset = LeRobotDataset(data.root, cameras=["top"], frames=FrameChoice("stream"))
    encode(path, (picture(code) for code in range(10)))
    with pytest.raises(DatasetError, match=r"frame 15, at 1.500 s, is missing from the video"):
        dataset[15]


def test_tens_of_thousands_of_episodes_open_in_linear_time(tmp_path: Path) -> None:
    from policysmith.builder.data.lerobot.layout import read_layout
    from policysmith.builder.data.lerobot.table import read_table

    from .many import write_many

    def seconds(count: int) -> float:
        root = write_many(tmp_path / str(count), count)
        start = time.process_time()
        layout = read_layout(root)
        table = read_table(layout, layout.choose_episodes(range(0, count, 2)))
        assert table.rows == count
        return time.process_time() - start

    seconds(100)
    few, many = seconds(4_000), seconds(40_000)
    assert many < 25 * few
