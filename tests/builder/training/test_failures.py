"""Failures of a run are one error with a cure."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.composed import Composed
from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.training.failures import explained
from policysmith.schemas.errors import DatasetError, TrainingError
from policysmith.schemas.recipe import TrainingSection

HUGE = 1 << 50


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def no_peer() -> None:
    raise RuntimeError("[../third_party/gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")


def no_shared_memory() -> None:
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...")


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (no_gpu_memory, r"the GPU is out of memory .*Tried to allocate 2.00 GiB.*`training.batch_size`, which is 5"),
        (lambda: torch.empty(HUGE), r"the host is out of memory .*`training.accumulate`, which is 3"),
        (no_peer, "another of the 2 processes ended or does not answer"),
        (no_shared_memory, r"shared memory \(/dev/shm\) ran out: lower `training.workers`, which is 4"),
    ],
    ids=["gpu memory", "host memory", "process", "shared memory"],
)  # fmt: skip
def test_an_error_of_torch_says_what_to_do(fails: Callable[[], Any], message: str, tmp_path: Path) -> None:
    section = TrainingSection(steps=1, batch_size=5, accumulate=3, workers=4)
    with (
        pytest.raises(TrainingError, match=f"{message}.*no checkpoint was written yet"),
        explained(tmp_path, section, 2),
    ):
        fails()


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("a defect"), ValueError("another")):
        with pytest.raises(type(error), match=str(error)), explained(tmp_path, TrainingSection(steps=1), 1):
            raise error


def test_memory_that_ends_in_a_later_step_keeps_the_checkpoint_before(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = RecipePolicy.forward, [0]

    def grows(self: RecipePolicy, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        return torch.empty(HUGE) if calls[0] == 4 else forward(self, *args, **options)

    builder = Builder.from_recipe(tiny).override({"training.save_every": 1})
    builder.check()
    monkeypatch.setattr(RecipePolicy, "forward", grows)
    with pytest.raises(TrainingError, match=r"out of memory.*`--resume` goes on from .*step-00000002"):
        builder.train(output=tmp_path, device="cpu")


def test_a_loader_process_that_is_killed_is_said(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that transforms of a hand-written policy change are loaded by processes."""
    main, read = os.getpid(), LeRobotDataset.__getitem__

    def killed(self: LeRobotDataset, index: Any) -> Any:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    tiny["training"]["workers"] = 1
    builder = Builder.from_recipe(tiny)
    builder.check()
    monkeypatch.setattr(Composed, "keyed", True)
    monkeypatch.setattr(LeRobotDataset, "__getitem__", killed)
    with pytest.raises(TrainingError, match=r"a loader process was killed .*`training.workers`, which is 1"):
        builder.train(output=tmp_path, device="cpu")


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_an_error_of_a_loader_is_told_without_its_traceback(
    processes: bool, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: LeRobotDataset, index: Any) -> Any:
        raise DatasetError("episode 3 is damaged")

    tiny["training"]["workers"] = 1
    builder = Builder.from_recipe(tiny)
    builder.check()
    monkeypatch.setattr(Composed, "keyed", processes)
    monkeypatch.setattr(LeRobotDataset, "__getitem__", damaged)
    with pytest.raises(DatasetError, match=r"^episode 3 is damaged$"):
        builder.train(output=tmp_path, device="cpu")
