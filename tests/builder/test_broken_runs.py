"""Files of a run that are damaged, or are no files: each command has one answer, and none waits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder import Builder
from policysmith.builder.evaluation.report.report import _curves
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.errors import CheckpointError
from policysmith.schemas.questions.runs import find_runs, table


@pytest.fixture(scope="module")
def trained(make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    Builder.from_recipe(make_tiny()).override({"training.steps": 1}).train(output=run, device="cpu")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "one", symlinks=True))


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "model.safetensors", "recipe.lock.yaml"])
def test_a_pipe_in_place_of_a_file_is_refused_by_name(run: Path, name: str) -> None:
    file = run.resolve() / "checkpoints" / "step-00000001" / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match=name):
        SavedPolicy.find(run)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "lo',
        b"\xff\xfe",
        b"5",
        b"null",
        b'{"step": null, "loss": 1.0}',
        b'{"step": 2, "loss": "x"}',
    ],
)
def test_lines_of_a_log_that_are_no_entries_are_skipped(run: Path, line: bytes) -> None:
    ends = (b'{"step": 1, "loss": 0.5}', b'{"step": 3, "loss": 0.25}')
    (run / "log.jsonl").write_bytes(b"\n".join([ends[0], line, ends[1]]))
    assert _curves(run, "tiny") == ([] if line[:1] == b"\xff" else [("tiny", [1, 3], [0.5, 0.25])])
    row = dict(zip(*table(find_runs([run])), strict=True))
    assert row["run"] == str(run)
    assert row.get("loss") == (None if line[:1] == b"\xff" else "0.25")


def test_a_path_too_long_for_the_system_is_no_policy() -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        SavedPolicy.find("x" * 5000)
