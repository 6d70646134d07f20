"""The best checkpoint, early stops, and evaluations beside a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policysmith.builder import Builder, runs
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.builder.training import evaluations, outcomes
from policysmith.builder.training.evaluations import Evaluations
from policysmith.builder.training.record import Record
from policysmith.builder.training.validation import Validation
from policysmith.schemas.recipe import EarlyStopSection

LOSSES = [5.0, 3.0, 1.0, 2.0, float("nan"), 1.0, 1.5, 0.5]
"""Losses of validation after steps 1 to 8."""
BY_LOSS = {
    "data.validation": 0.25,
    "training.steps": 8,
    "training.save_every": 1,
    "training.keep": 1,
    "training.keep_best": "validation/loss",
}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The losses that validation finds, in order."""
    left = list(LOSSES)
    monkeypatch.setattr(Validation, "losses", lambda *rest: {"validation/loss": left.pop(0)})
    return left


def steps(run: Path) -> list[int | None]:
    return [runs.step_of(path) for path in runs.checkpoints(run)]


def logged(run: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_the_best_checkpoint_is_kept_and_used_by_name(
    tiny: dict[str, Any], tmp_path: Path, scripted: list[float]
) -> None:
    run = tmp_path / "run"
    builder = Builder.from_recipe(tiny).override(BY_LOSS)
    builder.override({"training.steps": 7}).train(output=run, device="cpu")
    assert steps(run) == [3, 7]
    saved = SavedPolicy.find(run / "best")
    assert (saved.directory.name, saved.run) == ("step-00000003", run.resolve())
    del saved  # it holds the checkpoint
    assert SavedPolicy.find(run).directory.name == "step-00000007"
    builder.train(output=run, device="cpu", resume=True)  # knows the losses before
    assert (steps(run), SavedPolicy.find(run / "best").directory.name) == ([8], "step-00000008")


def test_a_run_stops_early_and_so_does_the_resumed_one(
    tiny: dict[str, Any], tmp_path: Path, scripted: list[float]
) -> None:
    run = tmp_path / "run"
    builder = Builder.from_recipe(tiny).override(BY_LOSS | {"training.early_stop": {"patience": 3}})
    result = builder.train(output=run, device="cpu")
    assert (result.steps, steps(run)) == (6, [3, 6])
    assert "no better; the run ends at step 6" in (run / "log.jsonl").read_text()
    assert builder.train(output=run, device="cpu", resume=True).taken == 0
    patient = builder.override({"training.early_stop.patience": 9})
    assert patient.train(output=run, device="cpu", resume=True).steps == 8


def test_a_run_that_was_killed_between_saving_and_validating_validates_first(
    tiny: dict[str, Any], tmp_path: Path, scripted: list[float]
) -> None:
    run = tmp_path / "run"
    builder = Builder.from_recipe(tiny).override(BY_LOSS)
    builder.override({"training.steps": 2}).train(output=run, device="cpu")
    whole = (run / "log.jsonl").read_text().splitlines()
    cut = next(n for n, line in enumerate(whole) if line.startswith('{"step": 2'))
    (run / "log.jsonl").write_text("\n".join(whole[:cut]) + "\n")
    scripted.insert(0, 3.0)
    builder.override({"training.steps": 3}).train(output=run, device="cpu", resume=True)
    assert logged(run, "validation/loss") == [(1, 5.0), (2, 3.0), (3, 1.0)]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"training.keep_best": "validation/loss"}, "training.keep_best"),
        ({"training.keep_best": "evaluation/success", "data.validation": 0.25}, "training.keep_best"),
        ({"training.early_stop": {"patience": 2}}, "training.early_stop.patience"),
    ],
)
def test_a_value_that_a_run_never_has_is_an_error(
    tiny: dict[str, Any], refused: Callable[..., Any], changes: dict[str, Any], place: str
) -> None:
    (found,) = refused(Builder.from_recipe(tiny).override(changes).check)
    assert (found.code, found.span.path) == ("E007 invalid-value", place)


def test_equal_values_keep_the_earliest_and_success_wants_to_be_high(tmp_path: Path) -> None:
    record = Record(tmp_path / "none", 0)
    for step, success in ((10, 0.2), (20, 0.8), (30, 0.8), (40, 0.5)):
        record.add(step, {"evaluation/success": success})
    assert record.best("evaluation/success") == 20
    patient = EarlyStopSection(metric="evaluation/success", patience=3)
    assert not record.reason_to_stop(patient)
    assert "best at step 20" in record.reason_to_stop(patient.model_copy(update={"patience": 2}))


PROGRAM = """
import json, sys, time
from pathlib import Path
checkpoint, home, *rest = sys.argv[1:]
while not Path({gate!r}).exists(): time.sleep(0.01)
if checkpoint.endswith("4"): sys.exit("no simulator")
rate = int(checkpoint[-1]) / 10
found = {{"interval_95": [0, 1], "successes": 1, "n": 2, "success_rate": rate}}
Path(home, "result.json").write_text(json.dumps({{"closed_loop": found}}))
"""


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for which a stand-in of the evaluation program waits; its success is a tenth of the step."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(gate=str(tmp_path / "gate")))
    start = evaluations.subprocess.Popen
    monkeypatch.setattr(
        evaluations.subprocess,
        "Popen",
        lambda words, **rest: start([words[0], "-S", str(program), *words[3:]], **rest),
    )
    return tmp_path / "gate"


def test_a_run_goes_on_beside_its_evaluations_and_changes_no_weight(
    tiny: dict[str, Any], tmp_path: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    tiny["training"] |= {"steps": 4, "keep": 1, "save_minutes": None}
    builder = Builder.from_recipe(tiny)
    builder.train(output=tmp_path / "plain", device="cpu")
    every = builder.override(
        {
            "evaluation": {"env": "metaworld/drawer-open-v3", "every": 1},
            "training.keep_best": "evaluation/success",
        }
    )
    monkeypatch.setattr("policysmith.builder.composed.environment_findings", lambda *rest: [])
    waits = outcomes.Outcomes.await_results

    def opened(self: Any, signals: Any) -> None:
        gate.touch()
        waits(self, signals)

    monkeypatch.setattr(outcomes.Outcomes, "await_results", opened)
    every.train(output=run, device="cpu")
    text = (run / "log.jsonl").read_text()
    assert "evaluation of step 2 is skipped" in text
    assert "evaluation of step 3 is skipped" in text
    assert "evaluation of step 4 failed (no simulator)" in text
    assert logged(run, "evaluation/success") == [(1, 0.1)]
    assert (runs.step_of((run / "best").resolve()), steps(run)) == (1, [1, 4])
    one, other = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("plain", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_evaluations_end_with_their_run(tmp_path: Path, gate: Path) -> None:
    checkpoint = runs.checkpoint_path(tmp_path / "run", 1)
    checkpoint.mkdir(parents=True)
    beside = Evaluations(tmp_path / "run", "cpu", lambda line: None, allow_imports=False)
    beside.request(1)
    assert beside.busy
    process = beside._running.process  # type: ignore[union-attr]
    assert process is not None
    beside.end()
    assert process.returncode is not None
    assert not beside.busy


def test_the_program_of_evaluations_ends_when_its_run_is_killed(tmp_path: Path) -> None:
    from policysmith.builder.evaluation import background

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(reader, 0)
        os.close(writer)
        import threading

        threading.Thread(target=background._end_with_the_run, daemon=True).start()
        time.sleep(60)
        os._exit(0)
    os.close(reader)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15
