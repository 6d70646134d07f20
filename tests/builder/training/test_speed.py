"""What a run tells of its speed, compiles and profiles, and that none of it changes what is learned."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policysmith.builder import Builder
from policysmith.builder.training.flops import count_flops, peak
from policysmith.builder.training.profile import NEEDED, PHASES
from policysmith.schemas.errors import TrainingError


class Told:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.logs: list[dict[str, float]] = []

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None:
        self.logs.append(values)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def close(self) -> None: ...


def run(recipe: dict[str, Any], output: Path, **options: Any) -> tuple[nn.Module, Told]:
    told = Told()
    result = Builder.from_recipe(recipe).train(output=output, device="cpu", reporters=(told,), **options)
    return result.policy, told


class Linear(nn.Module):
    """A policy whose operations are counted by hand, with a frozen layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(5, 7).requires_grad_(False)
        self.first = nn.Linear(7, 11)
        self.last = nn.Linear(11, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen += 1
        noise = torch.randn_like(batch["x"])
        return {"loss": self.last(self.first(self.frozen(batch["x"] + noise))).square().mean()}


def test_operations_are_those_of_pencil_and_paper() -> None:
    policy, batch = Linear(), {"x": torch.randn(4, 5), "task": ["a"] * 4}
    forward = 2 * 4 * (5 * 7 + 7 * 11 + 11 * 3)
    backward = 2 * 4 * (7 * 11) + 2 * 4 * (2 * 11 * 3)  # the frozen layer, and what it read, have no gradient
    state = torch.get_rng_state()
    assert count_flops(policy, batch) == forward + backward
    assert policy.seen == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_log_has_the_speed_in_operations(tiny: dict[str, Any], tmp_path: Path) -> None:
    _, told = run(tiny, tmp_path / "run")
    (note,) = [note for note in told.notes if "GFLOP a sample" in note]
    gflop = float(note.split()[0])
    for values in told.logs:
        per_second = gflop * values["samples_per_second"] / 1e3
        assert values["tflops"] == pytest.approx(per_second, rel=0.01)
        assert "mfu" not in values  # a CPU has no stated peak
    assert peak(torch.device("cpu")) is None


def test_a_policy_that_looks_at_values_is_not_counted(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["policy"]["head"] = {"type": "fast", "width": 16, "depth": 1, "heads": 2}
    _, told = run(tiny, tmp_path / "run")
    assert any(note.startswith("operations are not counted") for note in told.notes)
    assert all("tflops" not in values for values in told.logs)


@pytest.mark.parametrize("how", ["blocks", "off"])
def test_compiled_layers_learn_the_same(tiny: dict[str, Any], tmp_path: Path, how: str) -> None:
    tiny["data"]["episodes"] = [0, 1]
    tiny["training"] |= {"compile": how, "steps": 3}
    policy, told = run(tiny, tmp_path / how)
    plain, untold = run({**tiny, "training": {**tiny["training"], "compile": "auto"}}, tmp_path / "plain")
    ours, theirs = ([values["loss"] for values in one.logs] for one in (told, untold))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert any("compiling 1 layers one by one" in note for note in told.notes) == (how == "blocks")
    assert not any("compiling" in note for note in untold.notes)
    assert policy.state_dict().keys() == plain.state_dict().keys()


def test_a_profile_is_a_table_and_a_trace(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"] |= {"steps": NEEDED, "log_every": 100}
    _, told = run(tiny, tmp_path / "run", profile=True)
    folder = tmp_path / "run" / "profile"
    (table,) = [note for note in told.notes if "where a step goes" in note]
    assert all(phase in table for phase in PHASES)
    assert str(folder) in table
    step = json.loads((folder / "step.json").read_text())
    assert sum(step["host_ms"].values()) == pytest.approx(step["step_ms"], rel=1e-6)
    assert all(step["host_ms"][phase] > 0.0 for phase in PHASES)
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    named = {event.get("name") for event in trace["traceEvents"]}
    assert set(PHASES) <= named
    assert "aten::" in (folder / "operators.txt").read_text()


def test_a_profile_of_too_few_steps_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"looks at {NEEDED} steps, and 4 are left"):
        run(tiny, tmp_path / "run", profile=True)
    assert not (tmp_path / "run" / "profile").exists()
