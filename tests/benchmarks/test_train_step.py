"""The benchmarks of training run, and the trainers that they compare learn the same."""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_two_trainers_take_the_same_steps(tmp_path: Path) -> None:
    output, picture = tmp_path / "results.json", tmp_path / "ratios.png"
    names = ["trainer", "ours"]
    told = run("train_step.py", "--tiny", "--device", "cpu", "--works", "gr00t_dit", "--variants", *names, f"--output={output}")  # fmt: skip
    assert "gr00t_dit ours losses within" in told
    results = json.loads(output.read_text())
    [work] = results["works"]
    protocol = results["protocol"]
    assert [*work["variants"]] == names
    assert not work["left_out"]
    assert work["survey"]["flops"]["step"] > 0
    for result in work["variants"].values():
        assert len(result["blocks_ms"]) == protocol["rounds"]
        assert len(result["losses"]) == protocol["loss_steps"] // protocol["log_every"]
        assert result["losses"] == pytest.approx(work["variants"]["trainer"]["losses"], rel=1e-4)
    assert len({*work["variants"]["ours"]["losses"]}) > 1, "nothing was learned, so nothing was compared"
    assert {"torch", "transformers"} <= results["versions"].keys()
    assert str(tmp_path) not in json.dumps(work)
    run("plots.py", str(output), f"--output={picture}")
    assert picture.stat().st_size > 0


def test_works_of_full_size_pass_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    synthetic, workloads = (importlib.import_module(f"step.{n}") for n in ("synthetic", "workloads"))
    works = workloads.choose([], False)
    assert {work.recipe for work in works} > {"pi0.yaml", "gr00t_n1_5.yaml"}
    for work in {work.recipe: work for work in works}.values():
        synthetic.SyntheticBuilder.of(work).check()


def test_a_spent_budget_begins_nothing(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = run("train_step.py", "--tiny", "--budget=0", "--works", "act", f"--output={output}")
    assert "act: not begun, out of time" in done
    assert json.loads(output.read_text())["not_begun"] == ["act"]


def test_a_run_that_is_stopped_keeps_losses_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    comparison, workloads = (importlib.import_module(f"step.{n}") for n in ("comparison", "workloads"))
    protocol = importlib.import_module("step.protocol").Protocol(
        loss_steps=4, rounds=3, warmup=0, steps=10, log_every=2
    )
    kept: list[Any] = []

    class Trainer:
        """One that is interrupted in its second block."""

        def __init__(self, name: str, *_: object) -> None:
            self.name, self.losses, self.notes, self.peak = name, [], [], None
            self._seconds = iter([0.1, 0.1, 1.0])

        def setup(self) -> dict[str, Any]:
            return {"build_seconds": 0.0, "ema": None}

        def run(self, steps: int) -> float:
            if not steps:
                return 0.0
            self.losses.append(1.0 if self.name == "trainer" else 1.5)
            seconds = next(self._seconds, None)
            if seconds is None:
                raise KeyboardInterrupt
            return seconds

        def stop(self) -> None:
            """Nothing runs."""

    monkeypatch.setattr(comparison, "Variant", Trainer)
    session = comparison.Session(
        protocol,
        ["trainer", "ours"],
        "cpu",
        [],
        1,
        float("inf"),
        lambda message: None,
        {"gemm": {"tflops": 1.0}},
    )
    [work] = workloads.choose(["gr00t_dit"], True)
    with pytest.raises(KeyboardInterrupt):
        session.measure(work, lambda row: kept.append(copy.deepcopy(row)))
    assert [len(row["variants"].get("ours", {}).get("blocks_ms", [])) for row in kept] == [0, 0, 0, 1]
    assert kept[1]["variants"]["ours"]["loss_difference"] == 0.5
    assert kept[-1]["variants"]["ours"]["blocks_ms"] == [100.0]


def test_runs_of_several_processes_are_told(tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    run("scaling.py", "--tiny", "--device=cpu", "--work=gr00t_dit", "--processes", "1", "--rounds=1", "--steps=60", f"--output={output}")  # fmt: skip
    [told] = json.loads(output.read_text())["runs"]["1"]
    assert len(told["intervals"]) == 5
    assert told["notes"][0].startswith("1 process on cpu")


def test_filling_is_timed_beside_a_forward_pass(tmp_path: Path) -> None:
    output = tmp_path / "fill.json"
    run("cache_fill.py", "--tiny", "--device=cpu", "--rounds=1", "--batches=2", f"--output={output}")
    rates = json.loads(output.read_text())["samples_per_second"]
    assert all(rates[name] > 0.0 for name in ("eager forward", "filling"))


def run(*command: str) -> str:
    """Run a program of `benchmarks` and return its output."""
    path = os.pathsep.join(filter(None, [str(ROOT / ".namespace"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
