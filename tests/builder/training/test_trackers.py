"""Trackers of a run: TensorBoard for real, the others by packages that write down what they receive."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from policysmith.builder import Builder
from policysmith.builder.training.monitoring import trackers
from policysmith.builder.training.monitoring.trackers import Trackers
from policysmith.schemas.errors import TrainingError

RECORDER = """
    import json, os, threading
    def record(call, **facts):
        with open(os.environ["RECORDED"], "a") as file:
            file.write(json.dumps({"call": call, "thread": threading.get_ident(), **facts}, default=str) + "\\n")
        if os.environ.get("FAILS_AT") == f"{call} {facts.get('step')}":
            raise ConnectionError("no route to host\\nand more")
"""
RUN = """
    class Config:
        def update(self, values, **rest): record("config", values=values)
    config = Config()
    class Run:
        def define_metric(self, name, step_metric): record("axis", name=name, axis=step_metric)
        def log(self, values, step=None): record("log", values=values, step=values.get("step", step))
        def finish(self): record("finish")
    def init(**options):
        record("init", options=options)
        return Run()
"""
PACKAGES = {
    "wandb": RUN,
    "trackio": RUN,
    "mlflow": """
    from types import SimpleNamespace
    utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100))
    def search_experiments(filter_string): return []
    def create_experiment(name, **rest): return name
    def start_run(run_id, experiment_id, **rest):
        record("init", options={"id": run_id, "project": experiment_id, **rest})
        return SimpleNamespace(info=SimpleNamespace(run_id="made by the server"))
    def log_params(values): record("config", values=values)
    def log_artifact(local_path, artifact_path): record("artifact", path=local_path)
    def log_metrics(values, step): record("log", values=values, step=step)
    def end_run(): record("finish")
""",
}
Calls = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """`calls()`: the calls that the packages of trackers received since the last time."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, code in PACKAGES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(RECORDER) + textwrap.dedent(code))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("RECORDED", str(tmp_path / "calls"))
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)

    def received() -> list[dict[str, Any]]:
        path = tmp_path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return received


def lines(run: Path) -> list[dict[str, Any]]:
    """The measurements in the log of a run."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in found if "step" in line]


def point(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != "step"}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_receives_the_log_and_a_resumed_run_goes_on_in_the_same_remote_run(
    name: str, tiny: dict[str, Any], tmp_path: Path, calls: Calls
) -> None:
    builder = Builder.from_recipe(tiny).override(
        {"training.track": [name], "training.steps": 2, "data.validation": 0.25}
    )
    run = tmp_path / "first"
    builder.train(output=run, device="cpu")
    received = calls()
    logged = [call for call in received if call["call"] == "log"]
    assert [(call["step"], point(call["values"])) for call in logged] == [
        (line["step"], point(line)) for line in lines(run)
    ]
    assert "validation/loss" in logged[-1]["values"]
    began = received[0]["options"]
    assert began["project"] == "tiny"
    stored = {key: value for call in received for key, value in call.get("values", {}).items()}
    flat = began.get("config") or stored
    assert flat.get("training.batch_size", flat.get("training", {}).get("batch_size")) == 4
    assert received[-1]["call"] == "finish"
    assert len({call["thread"] for call in received} - {threading.get_ident()}) == 1

    builder.override({"training.steps": 3}).train(output=run, device="cpu", resume=True)
    again = calls()
    identity = "name" if name == "trackio" else "id"
    before = "made by the server" if name == "mlflow" else began[identity]
    assert before
    assert again[0]["options"][identity] == before
    assert [call["step"] for call in again if call["call"] == "log"] == [3]


def test_a_tracker_that_fails_warns_once_and_changes_no_weight(
    tiny: dict[str, Any],
    tmp_path: Path,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    builder = Builder.from_recipe(tiny)
    builder.override({"training.track": []}).train(output=tmp_path / "plain", device="cpu")
    monkeypatch.setenv("FAILS_AT", "log 2")
    builder.override({"training.track": ["wandb", "mlflow"]}).train(output=tmp_path / "run", device="cpu")
    warned = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert sorted(text.split()[0] for text in warned) == ["mlflow", "wandb"]
    assert all("no route to host" in text and "and more" not in text for text in warned)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    one, other = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("plain", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_a_tracker_that_cannot_start_stops_a_new_run_and_not_a_resumed_one(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAILS_AT", "init None")
    reporter = Trackers(["wandb"], tmp_path, {"name": "tiny"}, "")
    with pytest.raises(TrainingError, match=r"no route to host.*training\.track"):
        reporter.start(0, 4)
    reporter.start(2, 4)
    reporter.log(3, {"loss": 1.0})
    reporter.close()
    assert "continues without it" in caplog.text
    assert [call["call"] for call in calls()] == ["init", "init"]


def test_a_tracker_that_hangs_holds_up_the_end_only_for_so_long(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 0.1)
    reporter, answered = Trackers(["wandb"], tmp_path, {"name": "tiny"}, ""), threading.Event()
    reporter.start(0, 4)
    wandb: Any = sys.modules["wandb"]
    monkeypatch.setattr(wandb.Run, "finish", lambda run: answered.wait(30))
    with caplog.at_level(logging.WARNING):
        reporter.close()
    answered.set()
    assert "wandb does not answer" in caplog.text


def test_tensorboard_shows_a_killed_and_resumed_run_once(tmp_path: Path) -> None:
    for first, last, loss in ((0, 4, 1.0), (2, 5, 2.0)):
        reporter = Trackers(["tensorboard"], tmp_path, {"name": "tiny"}, "recipe: 1\nname: tiny\n")
        reporter.start(first, 5)
        for step in range(first + 1, last + 1):
            reporter.log(step, {"loss": loss})
        reporter.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in found.Scalars("loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
        (5, 2.0),
    ]
    text = found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "name: tiny" in text


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_missing_is_one_error_of_check(
    name: str, tiny: dict[str, Any], refused: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "policysmith.builder.planning.checks.trackers.find_spec", lambda package: package != name or None
    )
    builder = Builder.from_recipe(tiny).override({"training.track": ["tensorboard", *PACKAGES]})
    (found,) = refused(builder.check)
    assert found.code == "E014 missing-package"
    assert found.span.path == f"training.track[{list(PACKAGES).index(name) + 1}]"
    assert "policysmith[tracking]" in found.help
