"""Whole evaluations: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from policysmith.builder import Builder
from policysmith.builder.data.lerobot.info import inspect
from policysmith.builder.evaluation import ClosedLoopResult, EvaluationResult, evaluate
from policysmith.builder.evaluation.report.report import write_report
from policysmith.builder.evaluation.rollout import Episode
from policysmith.builder.evaluation.video import save_strip, save_video
from policysmith.builder.planning.checks.compatibility import check_dataset
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.errors import CheckpointError, SpecError

DRAWER = "metaworld/drawer-open-v3"


@pytest.fixture
def run(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """A trained run with a validation split and no evaluation section."""
    changes = {"training.steps": 2, "data.validation": 0.25, "training.save_every": 1}
    Builder.from_recipe(tiny).override(changes).train(output=tmp_path / "run", device="cpu")
    return tmp_path / "run"


def closed_loop(successes: int, trials: int = 50) -> ClosedLoopResult:
    episodes = tuple(
        Episode(i, 2 * i, i < successes, 80 + i if i < successes else 500) for i in range(trials)
    )
    return ClosedLoopResult(DRAWER, 10_000, episodes, 80, 500, 60.0, 2, "cpu", filmed=1)


def test_open_loop_alone_needs_no_simulator(run: Path) -> None:
    told: list[str] = []
    result = evaluate(run, open_loop=True, device="cpu", progress=told.append)
    assert result.closed_loop is None
    assert result.open_loop is not None
    assert result.open_loop.split == "validation"
    assert len(result.open_loop.episodes) == 1
    assert result.output == run / "evaluation"
    assert {path.name for path in result.output.iterdir()} == {"report.html", "result.json", "open_loop.png"}
    with PIL.Image.open(result.output / "open_loop.png") as plot:
        assert plot.size[0] > 1000
    assert told == ["open loop: 1 validation episodes"]
    held = json.loads((result.output / "result.json").read_text())
    assert held["closed_loop"] is None
    assert held["open_loop"]["mae"] == result.open_loop.mae.tolist()
    assert held["command"] == f"policysmith evaluate {run} --open-loop --device cpu"
    assert held["recipe"]["name"] == "tiny"
    report = (result.output / "report.html").read_text()
    for part in ("backbones.vision", "backbones.proprio", "head", "action chunk"):
        assert f">{part}</text>" in report
    assert held["versions"]["torch"]
    assert result.lines[0].startswith("open loop      mean absolute error ")
    assert result.lines[0].endswith("(1 of 1 validation episodes)")
    assert result.lines[-2] == f"report         {result.report}"
    assert result.lines[-1] == f"checkpoint     {result.checkpoint}"


def test_options_of_rollouts_beside_open_loop_are_noted(run: Path) -> None:
    result = evaluate(run, open_loop=True, episodes=3, seed=0, device="cpu")
    assert any("`episodes`, `seed` had no effect" in line for line in result.lines)


def test_an_older_checkpoint_has_a_report_of_its_own(run: Path) -> None:
    result = evaluate(run / "checkpoints" / "step-00000001", open_loop=True, device="cpu")
    assert result.output == run / "evaluation" / "step-00000001"


def test_the_report_stands_alone_and_tells_everything(run: Path) -> None:
    judged = evaluate(run, open_loop=True, device="cpu")
    frames = [np.full((32, 32, 3), 40 * i, dtype=np.uint8) for i in range(6)]
    save_video(judged.output / "rollouts.mp4", [(frames, True)])
    save_strip(judged.output / "strip.png", frames)
    result = replace(
        judged, closed_loop=closed_loop(50), control=closed_loop(24), notes=("a remark < other",)
    )
    write_report(result, SavedPolicy.find(run))
    page = result.report.read_text()
    for outside in ("://", "<link", "<script", "@import", "url(http"):
        assert outside not in page
    assert "data:video/mp4;base64," in page
    assert "data:image/png;base64," in page
    assert page.count("<svg") == 3
    assert "currentColor" in page
    assert "<metadata>" not in page
    assert '<div class="big">100<small>%</small>' in page
    assert "50 of 50 rollouts, 95 % interval 93 to 100 %" in page
    assert '<div class="big">48<small>%</small>' in page
    assert "The intervals do not overlap" in page
    assert page.count('class="won"') == 74
    assert page.count('class="lost"') == 26
    assert "a remark &lt; other" in page
    assert "hand_dx" in page
    assert "prefers-color-scheme: dark" in page
    for fact in ("evaluated by", "--open-loop", "recipe SHA-256", "training seed", "cores"):
        assert fact in page


def test_an_evaluation_leaves_nothing_of_the_one_before(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "rollouts.mp4").write_text("old")
    result = evaluate(run, open_loop=True, device="cpu")
    assert not (run / "evaluation" / "rollouts.mp4").exists()
    assert "<video" not in result.report.read_text()


def test_lines_say_what_happened() -> None:
    result = EvaluationResult(
        Path("runs/x/policy"), Path("runs/x/evaluation"), "", closed_loop(50), closed_loop(24), new_goals=True
    )
    lines = result.lines
    assert lines[0] == (
        f"closed loop    {DRAWER}   50/50 = 100 % (95 % interval 93-100 %), "
        "goals not in the demonstrations, seed 10000"
    )
    assert lines[1] == "blind control  24/50 = 48 % (95 % interval 35-61 %)"
    assert lines[2] == "report         runs/x/evaluation/report.html"
    assert "goals" not in replace(result, new_goals=False).lines[0]


def test_without_environment_and_dataset_the_cure_is_named(run: Path) -> None:
    shutil.copytree(run / "policy", run.parent / "alone")
    config = json.loads((run.parent / "alone" / "config.json").read_text())
    config["recipe"]["data"]["path"] = "gone"
    (run.parent / "alone" / "config.json").write_text(json.dumps(config))
    (run.parent / "alone" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"nothing to evaluate .*--env metaworld/drawer-open-v3"):
        evaluate(run.parent / "alone", device="cpu")


def test_another_dataset_is_told_and_one_that_does_not_fit_is_refused(run: Path) -> None:
    saved = SavedPolicy.find(run)
    info = inspect(saved.description["data"])
    check_dataset(saved, info, "drawer_open")
    other = replace(
        info,
        cameras={"wrist": (96, 96)},
        action_dim=7,
        vectors={"observation.state": 9, "observation.force": 6},
    )
    with pytest.raises(SpecError, match="does not fit the dataset kitchen") as caught:
        check_dataset(saved, other, "kitchen")
    for part in ("reads camera `corner2`, the dataset has `wrist`", "actions of 4", "has 7", "has 9 values"):
        assert part in caught.value.message
    with pytest.raises(SpecError, match=r"at 96 x 96 pixels \(height x width\), the dataset has 48 x 64"):
        check_dataset(saved, replace(info, cameras={"corner2": (48, 64)}), "small")


def test_a_dataset_that_changed_since_is_noted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SavedPolicy, "fingerprint", lambda self, embodiment: "another")
    result = evaluate(run, open_loop=True, device="cpu")
    assert any("has changed since the policy was trained" in line for line in result.lines)


def test_a_directory_that_cannot_be_written_to_is_refused_before_anything_runs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SavedPolicy, "load", lambda *args: pytest.fail("the policy was loaded"))
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(OSError(30, "Read-only", dir))
    )
    with pytest.raises(OSError, match="choose another `--output`"):
        evaluate(run, open_loop=True, device="cpu")
    monkeypatch.undo()
    (run / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match="choose another `--output`"):
        evaluate(run, open_loop=True, device="cpu", output=run / "taken" / "report")


HAND_WRITTEN = """
import torch
from torch import nn
from transformers import PretrainedConfig
from policysmith.builder import BasePolicyModel, DataCollatorRegistry

class NudgeConfig(PretrainedConfig):
    model_type = "nudge"
    def transform(self):
        return None, [0], [0, 1, 2]

@BasePolicyModel.register("nudge")
class Nudge(BasePolicyModel):
    config_class = NudgeConfig
    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(4, 12)
    def forward(self, batch):
        prediction = self.inference(batch)
        return {"loss": (prediction - batch["action"]).abs().mean(), "prediction": prediction}
    def inference(self, batch):
        return self.layer(batch["observation.state"][:, 0]).reshape(-1, 3, 4)

@DataCollatorRegistry.register("nudge")
def collate(samples):
    return {key: torch.stack([sample[key] for sample in samples]) for key in ("observation.state", "action")}
"""


def test_a_hand_written_policy_is_judged_once_its_file_may_run(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nudge.py").write_text(HAND_WRITTEN)
    tiny |= {"name": "nudged", "imports": ["nudge.py"], "policy": {"type": "nudge"}}
    tiny["transforms"] = [{"type": "normalize"}]
    tiny["data"] = {"path": tiny["data"]["path"], "episodes": [0]}
    tiny["training"]["steps"] = 1
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny))
    Builder.from_recipe(tmp_path / "recipe.yaml", allow_imports=True).train(
        output=tmp_path / "run", device="cpu"
    )
    with pytest.raises(CheckpointError, match=r"needs `nudge\.py`, which its recipe imports"):
        evaluate(tmp_path / "run", open_loop=True, device="cpu")
    result = evaluate(tmp_path / "run", open_loop=True, device="cpu", allow_imports=True)
    assert result.open_loop is not None
    assert len(result.open_loop.mae_by_step) == 3
    assert 0.0 < result.open_loop.mae.mean() < 2.0
    with monkeypatch.context() as broken:
        policy = type(SavedPolicy.find(tmp_path / "run").load("cpu"))
        inference = policy.inference
        broken.setattr(policy, "inference", lambda self, batch: 1e9 * (1 + inference(self, batch).abs()))
        with pytest.raises(SpecError, match=r"`action` is .* in training"):
            evaluate(tmp_path / "run", open_loop=True, device="cpu", allow_imports=True)


@pytest.mark.sim
def test_a_policy_and_its_control_in_simulation(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["evaluation"] = {"env": DRAWER, "episodes": 1, "control": "blind"}
    changes = {"training.steps": 2, "data.episodes": [0]}
    Builder.from_recipe(tiny).override(changes).train(output=tmp_path / "run", device="cpu")
    result = evaluate(tmp_path / "run", device="cpu")
    assert result.closed_loop is not None
    assert result.control is not None
    assert result.open_loop is not None
    assert [one.seed for one in result.closed_loop.episodes] == [one.seed for one in result.control.episodes]
    assert "goals not in the demonstrations" in result.lines[0]
    assert {path.name for path in result.output.iterdir()} == {
        "report.html",
        "result.json",
        "open_loop.png",
        "rollouts.mp4",
        "strip.png",
    }
    assert (tmp_path / "run" / "control" / "policy" / "config.json").exists()
