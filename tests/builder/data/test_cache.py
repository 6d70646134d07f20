"""The frame cache is decoded once, written whole or not at all, and rebuilt when damaged."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import pickle
import shutil
import time
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.frames import cache, digests, room, stored
from policysmith.builder.data.frames.cache import cache_root
from policysmith.builder.data.frames.choice import FrameChoice
from policysmith.builder.data.frames.decoding import FrameSource, decode
from policysmith.builder.data.frames.digests import file_digest
from policysmith.schemas.errors import DatasetError

from ..faults import failing
from .synthetic import picture, read_code, write_dataset


def codes(root: Path, camera: str = "top") -> list[int]:
    dataset = LeRobotDataset(root, cameras=[camera])
    return [read_code(dataset[i][f"observation.images.{camera}"][0].numpy()) for i in range(len(dataset))]


def entries(cache_directory: Path) -> list[Path]:
    return sorted(path.parent for path in cache_directory.glob("*/index.json"))


def test_the_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICYSMITH_CACHE", "~/frames")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / "frames"
    monkeypatch.delenv("POLICYSMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/policysmith/frames"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache/policysmith/frames"


def test_each_file_is_decoded_once(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    assert codes(root) == list(range(30))
    assert len(entries(frame_cache)) == 2
    monkeypatch.setattr(stored, "decode", lambda source: pytest.fail("decoded again"))
    assert codes(root) == list(range(30))
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert codes(copy) == list(range(30))


def drop_a_byte(entry: Path) -> None:
    path = entry / "frames.u8"
    path.write_bytes(path.read_bytes()[:-1])


def zero_the_frames(entry: Path) -> None:
    path = entry / "frames.u8"
    path.write_bytes(bytes(path.stat().st_size))


def blacken_one_frame(entry: Path) -> None:
    path = entry / "frames.u8"
    before, content = path.stat(), bytearray(path.read_bytes())
    frame = len(content) // json.loads((entry / "index.json").read_text())["frames"]
    content[frame : 2 * frame] = bytes(frame)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def shift_the_times(entry: Path) -> None:
    times = np.load(entry / "timestamps.npy")
    np.save(entry / "timestamps.npy", times + 0.001)


def forget_the_digests(entry: Path) -> None:
    """Remove the digests, which early versions did not write."""
    path = entry / "index.json"
    index = json.loads(path.read_text())
    del index["sha256"]
    path.write_text(json.dumps(index))


def remove_the_frames(entry: Path) -> None:
    (entry / "frames.u8").unlink()


def empty_the_index(entry: Path) -> None:
    (entry / "index.json").write_text("")


def change_the_index(entry: Path) -> None:
    path = entry / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "frames": index["frames"] - 1}))


def strip_the_index(entry: Path) -> None:
    (entry / "index.json").write_text("[]")


def shorten_the_times(entry: Path) -> None:
    np.save(entry / "timestamps.npy", np.zeros(2))


def empty_the_times(entry: Path) -> None:
    (entry / "timestamps.npy").write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        drop_a_byte,
        zero_the_frames,
        blacken_one_frame,
        shift_the_times,
        forget_the_digests,
        remove_the_frames,
        empty_the_index,
        change_the_index,
        strip_the_index,
        shorten_the_times,
        empty_the_times,
    ],
)
def test_a_damaged_entry_is_rebuilt_loudly(
    tmp_path: Path, frame_cache: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    assert codes(root) == list(range(30))
    damage(entries(frame_cache)[0])
    with caplog.at_level(logging.WARNING):
        assert codes(root) == list(range(30))
    assert len(caplog.records) == 1
    assert "are damaged" in caplog.text
    assert ".mp4" in caplog.text
    caplog.clear()
    assert codes(root) == list(range(30))
    assert not caplog.records


def test_an_interrupted_build_leaves_no_entry(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root

    def interrupted(source: object) -> object:
        yield picture(0), 0.0
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stored, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            codes(root)
    assert entries(frame_cache) == []
    assert not list(frame_cache.glob("*.tmp"))
    assert codes(root) == list(range(4))


def test_what_a_killed_process_left_is_removed(tmp_path: Path, frame_cache: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root
    codes(root)
    entry = entries(frame_cache)[0]
    abandoned = entry.with_name(f"{entry.name}.abc.tmp")
    entry.rename(abandoned)
    assert codes(root) == list(range(4))
    assert not abandoned.exists()


def test_too_little_space_says_how_much_is_needed(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(
        DatasetError, match=r"4 files needs 0.000369 GB in .*, which has room for 1e-06 GB.*POLICYSMITH_CACHE"
    ):
        LeRobotDataset(root, frames=FrameChoice("raw"))
    assert entries(frame_cache) == []


def test_a_disk_that_fills_up_meanwhile(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored.os, "fsync", full)
    with pytest.raises(DatasetError, match=r"cannot be written to .* \(No space left on device\)"):
        codes(root)
    assert not list(frame_cache.glob("*.tmp"))


def test_a_cache_that_cannot_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLICYSMITH_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(DatasetError, match=r"cannot be created \(.*\); set POLICYSMITH_CACHE"):
        codes(root)


def test_a_cache_that_vanishes_while_in_use(tmp_path: Path, frame_cache: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root)
    shutil.rmtree(frame_cache)
    with pytest.raises(DatasetError, match=r"are missing or damaged"):
        dataset[0]


def test_a_file_that_is_cut_while_in_use_is_an_error_and_no_signal(tmp_path: Path, frame_cache: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root)
    for number in (0, len(dataset) - 1):
        dataset[number]
    for entry in entries(frame_cache):
        os.truncate(entry / "frames.u8", 1)
    with pytest.raises(DatasetError, match=r"are missing or damaged \(the file ends before byte 24576\)"):
        dataset[len(dataset) - 1]
    copied = pickle.loads(pickle.dumps(dataset))
    with pytest.raises(DatasetError, match=r"are missing or damaged \("):
        copied[0]


def test_whole_files_are_read_once_and_then_remembered(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root
    codes(root)
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -1.0)
    codes(root)
    monkeypatch.setattr(digests, "plain_digest", lambda path: pytest.fail(f"{path} is read again"))
    assert codes(root) == list(range(4))


def test_the_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICYSMITH_CACHE", str(tmp_path / "cache"))
    codes(write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root)
    for directory in (tmp_path / "cache", *entries(tmp_path / "cache")):
        assert directory.stat().st_mode & 0o077 == 0, directory


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_at_any_change_of_a_file_is_one_message(
    number: int, tmp_path: Path, frame_cache: Path
) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(4,)).root
    told = []
    for at in range(60):
        shutil.rmtree(frame_cache, ignore_errors=True)
        with failing(at, number, frame_cache) as what:
            try:
                assert codes(root) == list(range(4))  # what is only remembered may be lost
            except DatasetError as error:
                told.append(str(error))
        if what["hit"] is None:
            break
    assert len(told) > 3
    assert all(os.strerror(number) in message and "POLICYSMITH_CACHE" in message for message in told)


def test_those_who_start_together_decode_once(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand in for processes, as the lock belongs to an open file."""
    root = write_dataset(tmp_path / "set", "v3.0").root
    decoded: list[Path] = []

    def slowly(source: FrameSource) -> Iterator[tuple[np.ndarray, float]]:
        decoded.append(source.path)
        for frame in decode(source):
            time.sleep(0.002)
            yield frame

    monkeypatch.setattr(stored, "decode", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(codes, [root] * 4)) == [list(range(30))] * 4
    assert len(decoded) == len(set(decoded)) == len(entries(frame_cache)) == 2
    assert not list(frame_cache.glob("*.tmp"))


def test_without_locks_the_first_result_stays(
    tmp_path: Path, frame_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root

    def unsupported(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", unsupported)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(codes, [root] * 4)) == [list(range(30))] * 4
    assert not list(frame_cache.glob("*.tmp"))


def test_digests_are_remembered_only_for_settled_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory"
    path.write_text("one")
    first = file_digest(path, memory=memory)
    assert not memory.exists()
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -1.0)
    assert file_digest(path, memory=memory) == first
    (note,) = memory.iterdir()
    note.write_text(note.read_text().replace(first, "remembered"))
    assert file_digest(path, memory=memory) == "remembered"
    path.write_text("other")
    assert file_digest(path, memory=memory) not in (first, "remembered")
    note.write_text("broken")
    assert len(file_digest(path, memory=memory)) == 64


def test_files_of_frames_are_closed_with_the_dataset(tmp_path: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "set", "v2.1").root)
    gc.collect()  # datasets of other tests
    before = len(list(Path("/proc/self/fd").iterdir()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for sample in dataset:
            assert sample["observation.images.top"].dtype == torch.uint8
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 10
        del dataset
        gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1  # the lease
    assert not [warning for warning in caught if warning.category is ResourceWarning]
