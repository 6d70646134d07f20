"""Open files of the frame cache while the garbage collector ends stores that use them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder.data.frames.open_files import OpenFiles


def at_each_hash(path: Path, action: Callable[[], None]) -> Any:
    """Return a path at whose hash, which is Python code, the garbage collector may run as well."""

    class Collecting(type(path)):  # type: ignore[misc]
        def __hash__(self) -> int:
            action()
            return int(super().__hash__())

    return Collecting(path)


@pytest.mark.parametrize("closed", ["the_same", "another"])
def test_a_store_may_end_while_a_file_is_looked_up(closed: str, tmp_path: Path) -> None:
    files, paths = OpenFiles(), {name: tmp_path / name for name in ("the_same", "another")}
    for path in paths.values():
        path.write_bytes(b"frame")
        files.get(path)
    looked_up = at_each_hash(paths["the_same"], lambda: files.close(paths[closed]))
    found: list[bytearray] = []

    def read() -> None:
        for _ in range(3):
            out = bytearray(5)
            files.get(looked_up).read_into(memoryview(out), 0)
            found.append(out)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(10.0)
    assert found == [b"frame"] * 3


def test_the_files_used_last_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policysmith.builder.data.frames.open_files._MOST", 2)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(b"frame")
    files = OpenFiles()
    first, _ = files.get(paths[0]), files.get(paths[1])
    assert files.get(paths[0]) is first
    files.get(paths[2])
    assert files.get(paths[0]) is first
    paths[1].unlink()
    with pytest.raises(FileNotFoundError):
        files.get(paths[1])
