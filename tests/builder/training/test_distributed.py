"""Two gloo processes take the steps that one process takes with the whole batch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.training import checkpoint
from policysmith.builder.training.speed.step_graph import Settings

CHECKED, TRIED = Settings().checked, Settings().first_replay
DOCUMENTED = Path(__file__).parents[3] / "docs/performance.md"


Train = Callable[..., str]


@pytest.fixture
def in_two_processes(command: Callable[..., subprocess.CompletedProcess[str]]) -> Train:
    """`in_two_processes(recipe, folder, *options)`: train into `<folder>/two`; return the output."""

    def train(recipe: dict[str, Any], folder: Path, *options: str) -> str:
        argv = ["build-and-train", written(recipe, folder), "--output", folder / "two", "--device", "cpu"]
        done = command([*argv, *options], folder, processes=2, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return train


def test_two_processes_equal_one_with_twice_the_batch(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**tiny, "transforms": [{"type": "color_jitter"}, *tiny["transforms"]]}
    recipe["data"] |= {"horizon": 24, "validation": 0.25}  # most of it padding
    recipe["training"]["workers"] = 1
    output = launched(recipe, tmp_path)
    builder = Builder.from_recipe(recipe).override({"training.batch_size": 8})
    initial = flat(builder.build().state_dict())
    builder.train(output=tmp_path / "one", device="cpu")
    alone, together = (
        flat(AutoModel.from_pretrained(tmp_path / run / "policy").state_dict()) - initial
        for run in ("one", "two")
    )
    # AdamW turns rounding of vanishing gradients into whole steps, so single weights may differ.
    assert torch.cosine_similarity(alone, together, dim=0) > 0.999
    for ours, theirs in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    last = [losses(tmp_path / run)[-1]["validation/loss"] for run in ("one", "two")]
    assert last[0] == pytest.approx(last[1], rel=1e-3)
    assert "2 processes" in output


def test_two_processes_fill_one_table_of_frozen_features(
    tiny: dict[str, Any], tmp_path: Path, in_two_processes: Train
) -> None:
    recipe = {**tiny, "transforms": [t for t in tiny["transforms"] if t["type"] != "random_shift"]}
    recipe["policy"]["freeze"] = ["backbones.vision.*"]
    recipe["data"] |= {"horizon": 1, "episodes": [0]}
    recipe["policy"]["execute"] = 1
    recipe["training"]["steps"] = 16
    output = in_two_processes(recipe, tmp_path)
    assert output.count("running frozen `vision` once") == 1
    again = Builder.from_recipe(recipe).override({"training.batch_size": 8})
    again.train(output=tmp_path / "one", device="cpu")
    notes = [
        json.loads(line).get("note", "") for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()
    ]
    assert any("are read from" in note for note in notes)
    for ours, theirs in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


SPOILED = """
import os

from policysmith.components.heads.mlp import MlpHead

good, calls = MlpHead.loss, []


def loss(self, features, actions, *others):
    found = good(self, features, actions, *others)
    if self.training and not actions.is_meta:
        calls.append(1)
    if len(calls) == 3 and os.environ.get("RANK") == "1":
        return {**found, "loss": found["loss"] + float("nan")}
    return found


MlpHead.loss = loss
"""


def test_what_one_process_sees_that_is_not_finite_stops_both(
    tiny: dict[str, Any], tmp_path: Path, in_two_processes: Train
) -> None:
    """Stop both, although gradients are finite, so that the other process would see nothing and wait forever."""
    (tmp_path / "spoiled.py").write_text(SPOILED)
    with pytest.raises(
        AssertionError, match=r"not finite at step \d .*the weights before it are in"
    ) as failed:
        in_two_processes(
            {**tiny, "imports": ["spoiled.py"], "training": {**tiny["training"], "steps": 9}},
            tmp_path,
            "--allow-imports",
        )
    assert "Timeout" not in str(failed.value)


REPLAYING = f"""
import sys
from contextlib import nullcontext
from functools import partial

import torch

from policysmith.builder.training import loop
from policysmith.builder.training.speed import step_graph

sys.path.insert(0, {str(Path(__file__).parent)!r})
from replays import Replayed, never_slower

loop.capturable = lambda device: True
torch.cuda.synchronize = torch.cuda.empty_cache = lambda: None
step_graph.CapturedUpdate, step_graph.error_on_sync = Replayed, nullcontext
loop.StepGraph = partial(step_graph.StepGraph, settings=step_graph.Settings(busy=0.0))
step_graph.Trial.verdict = never_slower
"""
"""Lets a CPU replay steps, on a graph that only pretends to be one."""


def replaying(recipe: dict[str, Any], folder: Path, more: str = "") -> dict[str, Any]:
    """Return the recipe in a new folder, with steps that are replayed."""
    folder.mkdir()
    (folder / "replaying.py").write_text(REPLAYING + more)
    return {**recipe, "imports": ["replaying.py"]}


def test_processes_that_replay_steps_train_as_those_that_do_not(
    tiny: dict[str, Any], tmp_path: Path, in_two_processes: Train
) -> None:
    tiny["training"] |= {"steps": TRIED + CHECKED + 8, "log_every": 1}
    tiny["training"]["optimizer"] = {**tiny["training"].get("optimizer", {}), "states": "8bit"}
    recipe = replaying(tiny, tmp_path / "replayed")
    assert "replayed" in in_two_processes(recipe, tmp_path / "replayed", "--allow-imports")
    (tmp_path / "plain").mkdir()
    in_two_processes(tiny, tmp_path / "plain")
    for ours, theirs in zip(*(losses(tmp_path / how / "two") for how in ("replayed", "plain")), strict=True):
        for name in ("loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), ours["step"]


def test_what_is_not_finite_in_one_replay_stops_both(
    tiny: dict[str, Any], tmp_path: Path, in_two_processes: Train
) -> None:
    tiny["training"] |= {"steps": TRIED + CHECKED + 20}
    tiny["training"]["optimizer"] = {**tiny["training"].get("optimizer", {}), "states": "8bit"}
    late = SPOILED.replace("len(calls) == 3", f"len(calls) >= {TRIED + 2 * CHECKED + 6}")
    recipe = replaying(tiny, tmp_path / "run", late)
    with pytest.raises(AssertionError, match="not finite at step 2") as failed:
        in_two_processes(recipe, tmp_path / "run", "--allow-imports")
    assert "Timeout" not in str(failed.value)


STOPPED = """
import os
import signal

from policysmith.builder.training import loop

taken = loop._Run.take_step


def update(self):
    taken(self)
    if self.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)


loop._Run.take_step = update
"""
ELSEWHERE = """
import os

from policysmith.builder import runs

if os.environ["RANK"] == "1":
    runs.checkpoints = lambda run: []
"""
"""Hides the run from the second process, as on another machine."""


def test_a_signal_to_one_process_stops_both_which_resume_together(
    tiny: dict[str, Any], tmp_path: Path, in_two_processes: Train
) -> None:
    recipe = {**tiny, "training": {**tiny["training"], "steps": 1000, "schedule": {"type": "constant"}}}
    (tmp_path / "stopped.py").write_text(STOPPED)
    with pytest.raises(AssertionError, match=r"stopped by SIGTERM after step 4 of 1000"):
        in_two_processes({**recipe, "imports": ["stopped.py"]}, tmp_path, "--allow-imports")
    (kept,) = checkpoint.checkpoints(tmp_path / "two")
    assert kept.name == "step-00000004"
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    recipe["training"]["steps"] = 5
    with pytest.raises(
        AssertionError, match=r"process 0 on .* has step-00000004, and process 1 on .* has none"
    ):
        in_two_processes({**recipe, "imports": ["elsewhere.py"]}, tmp_path, "--allow-imports", "--resume")
    in_two_processes(recipe, tmp_path, "--resume")
    assert checkpoint.checkpoints(tmp_path / "two")[-1].name == "step-00000005"


HANGING = """
import os
import time

from policysmith.builder.training import loop

taken = loop._Run.take_step


def update(self):
    if self.step == 2 and os.environ["RANK"] == "1":
        time.sleep(1000)
    taken(self)


loop._Run.take_step = update
"""


def test_a_process_that_hangs_is_named_within_the_time_set(
    tiny: dict[str, Any], tmp_path: Path, in_two_processes: Train
) -> None:
    tiny["training"]["timeout_minutes"] = 0.2
    (tmp_path / "hanging.py").write_text(HANGING)
    with pytest.raises(AssertionError, match=r"process 0 has waited 0.2 minutes in step \d") as raised:
        in_two_processes({**tiny, "imports": ["hanging.py"]}, tmp_path, "--allow-imports")
    assert re.search(r"process 1 has waited .* at .*hanging\.py:\d+, in update", str(raised.value))


def launched(recipe: dict[str, Any], folder: Path, *options: str) -> str:
    """Train as the documentation says, under `accelerate launch`, into `<folder>/two`; return the output."""
    binaries = Path(sys.executable).parent
    launch, train = "accelerate launch --no_python --multi_gpu --num_processes 2", "build-and-train"
    assert f"`{launch} {train} ...`" in DOCUMENTED.read_text()
    command = [
        *launch.split(), "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        train, written(recipe, folder), "--output", folder / "two", "--device", "cpu", *options,
    ]  # fmt: skip
    found = os.pathsep.join((str(binaries), os.environ["PATH"]))
    environment = {**os.environ, "PATH": found, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(recipe: dict[str, Any], folder: Path) -> Path:
    path = folder / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(recipe, stream)
    return path


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(state.items())])


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
