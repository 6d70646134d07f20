"""Disks that are full, read-only or gone: one message, and an untouched earlier checkpoint."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder, runs
from policysmith.builder.policy.storage import manifest
from policysmith.builder.training import checkpoint
from policysmith.builder.training.checkpoint import Identity
from policysmith.builder.training.monitoring.logs import FileLog
from policysmith.builder.training.optim.build import build_optimizer
from policysmith.schemas.errors import CheckpointError, TrainingError

from ..faults import failing


class Saver:
    """A run whose checkpoints are written without training."""

    def __init__(self, recipe: dict[str, Any], run: Path) -> None:
        builder = Builder.from_recipe(recipe)
        self.run, self.policy = run, builder.build()
        self.optimizer = build_optimizer(self.policy, builder.recipe.sections.training.optimizer)
        for weight in self.policy.parameters():
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()
        self.identity = Identity(builder.recipe.resolved(), "data", 1)

    def save(self, step: int) -> None:
        checkpoint.save(self.run, step, self.policy, self.optimizer, None, self.identity)
        runs.prune(self.run, 2)


@pytest.fixture(scope="module")
def saver(make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Saver:
    return Saver(make_tiny(), tmp_path_factory.mktemp("io") / "run")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get
)
def test_an_error_at_any_change_of_a_file_is_one_message(number: int, saver: Saver) -> None:
    shutil.rmtree(saver.run, ignore_errors=True)
    saver.save(1)
    events = 0
    for at in range(100):
        with failing(at, number, saver.run) as what:
            message = ""
            try:
                saver.save(2)
            except (CheckpointError, TrainingError) as error:
                message = str(error)
        if what["hit"] is None:
            break
        events += 1
        if not message:  # a directory that is there already, say
            assert runs.checkpoint_path(saver.run, 2).is_dir(), what["hit"]
        else:
            assert os.strerror(number) in message, what["hit"]
            assert "--resume" in message
        for path in runs.checkpoints(saver.run):
            assert manifest.verify(path) is not None
        assert runs.checkpoint_path(saver.run, 1).is_dir()
        shutil.rmtree(runs.checkpoint_path(saver.run, 2), ignore_errors=True)
        runs.tidy(saver.run, 2)
        assert sorted(p.name for p in (saver.run / "checkpoints").iterdir()) == ["step-00000001"]
    assert events > 8


def test_a_disk_that_is_full_when_bytes_are_written(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill a disk, simulated by files that cannot grow any further."""
    import resource
    import signal

    shutil.rmtree(saver.run, ignore_errors=True)
    saver.save(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 1000, 30_000, 60_000, 120_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(
                CheckpointError, match=r"step-00000002 cannot be written .*File too large.*--resume"
            ):
                saver.save(2)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert [path.name for path in runs.checkpoints(saver.run)] == ["step-00000001"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (saver.run / "checkpoints").iterdir()] == ["step-00000001"]


def test_an_output_that_is_no_path_is_told(tiny: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="choose another `--output`"):
        Builder.from_recipe(tiny).claim("a\0b")


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_disk_that_fails_late(call: str, saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(saver.run, ignore_errors=True)
    saver.save(1)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail) if call == "fsync" else patch.setattr(builtins, "open", fail)
        with pytest.raises(CheckpointError, match="Input/output error"):
            saver.save(2)
    assert [path.name for path in runs.checkpoints(saver.run)] == ["step-00000001"]


def test_a_run_that_is_removed_meanwhile_loses_no_weights(
    saver: Saver, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(saver.run, ignore_errors=True)
    saver.save(1)
    shutil.rmtree(saver.run)
    saver.save(2)
    assert "was removed during the run" in caplog.text
    assert manifest.verify(saver.run / "policy") is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_that_cannot_be_written_is_one_message(number: int, tmp_path: Path) -> None:
    for at in range(20):
        log = FileLog(tmp_path / "run", {}, "recipe: 1\n")
        with failing(at, number, tmp_path) as what:
            message = ""
            try:
                log.start(0, 1)
                log.note("hello")
                log.log(1, {"loss": 1.0})
            except TrainingError as error:
                message = str(error)
            finally:
                log.close()
        if what["hit"] is None:
            break
        assert os.strerror(number) in message or "tensorboard" in what["hit"]  # written later, by a thread
    assert at > 3
