"""Speed, compilation and profile of a run, none of which changes what is learned."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from policysmith.builder import Builder
from policysmith.builder.training.distributed.accelerator import peak
from policysmith.builder.training.monitoring.flops import ModelFlops
from policysmith.builder.training.monitoring.profile import NEEDED, PHASES
from policysmith.schemas.errors import TrainingError


class Recorder:
    """A reporter that keeps notes and values."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.logs: list[dict[str, float]] = []
        self.splits: set[Any] = set()
        """Values of the option to split layers for DDP."""

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None:
        self.splits.add(torch._dynamo.config.optimize_ddp)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.logs.append(values)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None: ...


def run(recipe: dict[str, Any], output: Path, **options: Any) -> tuple[nn.Module, Recorder]:
    recorder = Recorder()
    result = Builder.from_recipe(recipe).train(output=output, device="cpu", reporters=(recorder,), **options)
    return result.policy, recorder


def by_hand() -> float:
    """Return the GFLOP of a sample of the tiny recipe: two for each weight and token forward, and four backward."""
    patches, width = 2 * 2, 16
    encoder = (patches + 1) * width * (4 * width + 2 * 4 * width)  # a CPU's attention is not counted
    embedding = patches * 3 * 16 * 16 * width
    proprio = 4 * 8 + 8 * 8
    head = (width + 8) * 16 + 16 * 4 * 4
    forward = encoder + embedding + proprio + head
    inputs = embedding + 4 * 8  # nothing flows back into images and states
    return 2.0 * (3 * forward - inputs) / 1e9


def test_the_log_has_the_speed_in_operations(tiny: dict[str, Any], tmp_path: Path) -> None:
    _, recorder = run(tiny, tmp_path / "run")
    (note,) = [note for note in recorder.notes if "GFLOP a sample" in note]
    gflop = float(note.split()[0])
    assert gflop == pytest.approx(by_hand(), rel=0.01)
    for values in recorder.logs:
        per_second = gflop * values["samples_per_second"] / 1e3
        assert values["tflops"] == pytest.approx(per_second, rel=0.01)
        assert "mfu" not in values  # a CPU has no stated peak
    assert peak(torch.device("cpu")) is None


@pytest.mark.parametrize("how", ["blocks", "off"])
def test_compiled_layers_learn_the_same(tiny: dict[str, Any], tmp_path: Path, how: str) -> None:
    tiny["data"]["episodes"] = [0, 1]
    plain, untold = run({**tiny, "training": {**tiny["training"], "steps": 3}}, tmp_path / "plain")
    tiny["training"] |= {"compile": how, "steps": 3}
    torch._dynamo.reset()
    counters.clear()
    policy, recorder = run(tiny, tmp_path / how)
    assert recorder.splits == {how == "off"}
    assert torch._dynamo.config.optimize_ddp
    ours, theirs = ([values["loss"] for values in one.logs] for one in (recorder, untold))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert any("compiling 1 layers one by one" in note for note in recorder.notes) == (how == "blocks")
    assert not any("compiling" in note for note in untold.notes)
    assert (counters["frames"]["ok"] > 0) == (how == "blocks")
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert policy.state_dict().keys() == plain.state_dict().keys()
    assert all(module._compiled_call_impl is None for module in policy.modules())


def test_a_profile_is_a_table_and_a_trace(tiny: dict[str, Any], tmp_path: Path) -> None:
    phases = set(PHASES) - {"replay"}
    tiny["training"] |= {"steps": NEEDED, "log_every": 100}
    _, recorder = run(tiny, tmp_path / "run", profile=True)
    folder = tmp_path / "run" / "profile"
    (table,) = [note for note in recorder.notes if "where a step goes" in note]
    assert all(phase in table for phase in phases)
    assert str(folder) in table
    step = json.loads((folder / "step.json").read_text())
    assert sum(step["host_ms"].values()) == pytest.approx(step["step_ms"], rel=1e-6)
    assert all(step["host_ms"][phase] > 0.0 for phase in phases)
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    named = {event.get("name") for event in trace["traceEvents"]}
    assert phases <= named
    assert "aten::" in (folder / "operators.txt").read_text()


def test_a_profile_of_too_few_steps_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"looks at {NEEDED} steps, and 4 are left"):
        run(tiny, tmp_path / "run", profile=True)
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_does_not_count(reentrant: bool) -> None:
    layers = [nn.Linear(8, 8) for _ in range(3)]
    rows = torch.ones(5, 8, requires_grad=True)
    with ModelFlops() as counted:
        values = rows
        for layer in layers:
            values = checkpoint(layer, values, use_reentrant=reentrant)
        values.sum().backward()
    assert counted.get_total_flops() == 3 * 3 * 2 * 5 * 8 * 8  # forward, of the inputs, of the weights
