"""Signals and the clock: runs save, say so, and lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from policysmith.builder import Builder
from policysmith.builder.training import checkpoint
from policysmith.schemas.errors import Interrupted

from .test_run import state, weights

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


class Sends:
    """A reporter that sends signals to its own process after a step."""

    def __init__(self, *numbers: signal.Signals, step: int = 2) -> None:
        self._numbers, self._step = numbers, step

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None:
        if step == self._step:
            for number in self._numbers:
                signal.raise_signal(number)

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_saves_the_step_and_a_resumed_run_is_the_uninterrupted(
    number: signal.Signals, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["training"] |= {"ema": 0.9, "accumulate": 2, "log_every": 3}
    builder = Builder.from_recipe(tiny)
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted) as stopped:
        builder.train(output=tmp_path / "cut", device="cpu", reporters=[Sends(number)])
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert stopped.value.code == 128 + number
    assert not isinstance(stopped.value, Exception)
    assert f"stopped by {number.name} after step 3 of 4; `--resume` goes on from" in str(stopped.value)
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "cut")] == ["step-00000003"]
    resumed = builder.train(output=tmp_path / "cut", device="cpu", resume=True)
    whole = builder.train(output=tmp_path / "whole", device="cpu")
    assert resumed.taken == 1
    one, two = weights(whole.checkpoint), weights(resumed.checkpoint)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_second_ctrl_c_leaves_at_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="interrupted"):
        Builder.from_recipe(tiny).train(
            output=tmp_path, device="cpu", reporters=[Sends(signal.SIGINT, signal.SIGINT)]
        )
    assert checkpoint.checkpoints(tmp_path) == []


def test_a_signal_in_the_last_step_leaves_a_finished_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = Builder.from_recipe(tiny).train(
        output=tmp_path, device="cpu", reporters=[Sends(signal.SIGTERM, step=3)]
    )
    assert result.steps == 4


def test_an_ignored_signal_stays_ignored(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Ignore SIGHUP, as nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = Builder.from_recipe(tiny).train(
            output=tmp_path, device="cpu", reporters=[Sends(signal.SIGHUP)]
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.steps == 4


def test_signals_are_left_alone_outside_the_main_thread(tiny: dict[str, Any], tmp_path: Path) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    class Looks(Sends):
        def advance(self, step: int) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    builder = Builder.from_recipe(tiny)
    thread = threading.Thread(
        target=builder.train, kwargs={"output": tmp_path, "device": "cpu", "reporters": [Looks()]}
    )
    thread.start()
    thread.join()
    assert len(seen) == 4
    assert {*seen} == {before}


def test_a_long_run_saves_by_the_clock_and_learns_the_same(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"] |= {"keep": 9, "log_every": 3}
    tiny["data"]["validation"] = 0.25
    often = Builder.from_recipe(tiny).override({"training.save_minutes": 1e-9})
    saved = often.train(output=tmp_path / "often", device="cpu").checkpoint
    assert [state(path)["step"] for path in checkpoint.checkpoints(tmp_path / "often")] == [1, 2, 3, 4]
    once = Builder.from_recipe(tiny).override({"training.save_minutes": None})
    other = once.train(output=tmp_path / "once", device="cpu").checkpoint
    assert [state(path)["step"] for path in checkpoint.checkpoints(tmp_path / "once")] == [4]
    one, two = weights(saved), weights(other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    logged = [json.loads(line) for line in (tmp_path / "often" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "validation/loss" in line] == [4]


def test_checkpoints_by_steps_are_not_joined_by_others(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"] |= {"keep": 9, "save_every": 2, "save_minutes": 1e-9}
    Builder.from_recipe(tiny).train(output=tmp_path, device="cpu")
    assert [state(path)["step"] for path in checkpoint.checkpoints(tmp_path)] == [2, 4]


def test_the_command_ends_with_one_line_and_the_code_of_the_signal(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Signal the whole group, loader processes included, as a terminal or a batch system does."""
    tiny["training"] |= {"steps": 100_000, "workers": 1}
    with (tmp_path / "tiny.yaml").open("w") as stream:
        YAML().dump(tiny, stream)
    command = [Path(sys.executable).parent / "build-and-train", tmp_path / "tiny.yaml", "--device", "cpu"]
    running = subprocess.Popen(
        [*command, "--output", tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"loss"' in log.read_text()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 143
    assert errors.splitlines()[-1].startswith("stopped by SIGTERM after step")
    assert "Traceback" not in errors
    (kept,) = checkpoint.checkpoints(tmp_path / "run")
    assert str(kept) in errors
