"""Training on a GPU in bf16: it learns, stops at NaN, resumes, and its checkpoint works on a CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoModel

from policysmith.builder import Builder
from policysmith.builder.training import checkpoint, loop
from policysmith.builder.training.speed.step_graph import Settings, StepGraph
from policysmith.schemas.errors import TrainingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def logged(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def losses(run: Path) -> list[float]:
    return logged(run, "loss")


def test_bf16_training_learns_and_loads_on_a_cpu(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {
        "training.steps": 200,
        "training.batch_size": 32,
        "training.optimizer.lr": 1e-2,
        "training.ema": 0.9,
    }
    result = Builder.from_recipe(tiny).override(settings).train(output=tmp_path / "run", device="cuda")
    notes = (tmp_path / "run" / "log.jsonl").read_text()
    assert "on cuda, bf16" in notes
    found = losses(tmp_path / "run")
    assert sum(found[-20:]) < 0.8 * sum(found[:20])
    assert all(parameter.dtype == torch.float32 for parameter in result.policy.parameters())
    torch.manual_seed(0)
    observation = {
        "observation.images.corner2": torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8),
        "observation.state": torch.rand(4),
        "task": "open the drawer",
    }
    on_cpu = AutoModel.from_pretrained(result.checkpoint).select_action(observation)
    on_gpu = result.policy.select_action(observation)
    torch.testing.assert_close(on_cpu, on_gpu, rtol=0, atol=1e-3)


def test_nan_on_the_gpu_keeps_the_last_good_weights(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.components.heads.mlp import MlpHead

    builder = Builder.from_recipe(tiny).override({"training.steps": 20, "training.log_every": 10})
    builder.build()
    good, calls = MlpHead.loss, {"count": 0}

    def broken(self: MlpHead, *args: Any) -> dict[str, torch.Tensor]:
        calls["count"] += torch.is_grad_enabled()
        terms = good(self, *args)
        spoilt = calls["count"] == 5  # the first call counts operations, outside of training
        return {"loss": terms["loss"] * float("nan")} if spoilt else terms

    monkeypatch.setattr(MlpHead, "loss", broken)
    with pytest.raises(TrainingError, match="not finite at step 3"):
        builder.train(output=tmp_path / "run", device="cuda")
    saved = checkpoint.checkpoints(tmp_path / "run")[-1]
    assert saved.name == "step-00000003"
    assert all(torch.isfinite(p).all() for p in AutoModel.from_pretrained(saved).parameters())


def test_resuming_on_the_gpu_goes_on_where_it_stopped(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override(
        {"training.steps": 20, "training.save_every": 10, "training.keep": 5, "training.ema": 0.9}
    )
    whole = builder.train(output=tmp_path / "run", device="cuda").checkpoint
    expected = AutoModel.from_pretrained(whole).state_dict()
    shutil.rmtree(whole)
    again = builder.train(output=tmp_path / "run", resume=True, device="cuda").checkpoint
    for name, weight in AutoModel.from_pretrained(again).state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-4)


def settings(**changes: Any) -> dict[str, Any]:
    return {f"training.{name}": value for name, value in {"steps": 60, "batch_size": 16, **changes}.items()}


def test_compiled_layers_lose_what_eager_layers_lose(tiny: dict[str, Any], tmp_path: Path) -> None:
    for how in ("auto", "off"):
        builder = Builder.from_recipe(tiny).override(settings(compile=how))
        builder.train(output=tmp_path / how, device="cuda")
    assert "layers one by one" in (tmp_path / "auto" / "log.jsonl").read_text()
    compiled, eager = (torch.tensor(losses(tmp_path / how)) for how in ("auto", "off"))
    torch.testing.assert_close(compiled[:5], eager[:5], rtol=2e-2, atol=2e-3)
    assert abs(float(compiled[-20:].mean() - eager[-20:].mean())) < 0.1 * float(eager[-20:].mean())


def test_stored_features_lose_what_the_backbone_does(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["policy"]["freeze"] = ["backbones.vision.*"]
    tiny["transforms"] = [t for t in tiny["transforms"] if t["type"] != "random_shift"]
    for how in ("auto", "off"):
        builder = Builder.from_recipe(tiny).override(settings(cache=how, precision="fp32"))
        builder.train(output=tmp_path / how, device="cuda")
    assert "once over" in (tmp_path / "auto" / "log.jsonl").read_text()
    stored, computed = (torch.tensor(losses(tmp_path / how)) for how in ("auto", "off"))
    torch.testing.assert_close(stored, computed, rtol=1e-2, atol=1e-3)


def test_a_profile_tells_of_the_device(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override(settings())
    builder.train(output=tmp_path / "run", device="cuda", profile=True)
    step = json.loads((tmp_path / "run" / "profile" / "step.json").read_text())
    assert all(milliseconds > 0.0 for name, milliseconds in step["device_ms"].items() if name != "data wait")
    assert 0.0 < step["gpu_busy_ms"] < step["step_ms"]
    assert step["gpu_busy_ms"] + step["gpu_idle_ms"] == pytest.approx(step["step_ms"])


def notes(run: Path) -> str:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return "\n".join(line["note"] for line in lines if "note" in line)


def test_a_step_that_the_host_holds_up_is_replayed_and_loses_the_same(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    for how in ("auto", "off"):
        builder = Builder.from_recipe(tiny).override(
            settings(cuda_graph=how, compile="off", ema=0.9, log_every=1, save_every=30, keep=5)
        )
        builder.train(output=tmp_path / how, device="cuda")
    assert "replayed as a CUDA graph" in notes(tmp_path / "auto")
    assert "CUDA graph" not in notes(tmp_path / "off")
    replayed, plain = (torch.tensor(losses(tmp_path / how)) for how in ("auto", "off"))
    torch.testing.assert_close(replayed, plain, rtol=2e-2, atol=2e-3)
    for step in (30, 60):  # the averages that are saved too
        saved = [
            AutoModel.from_pretrained(checkpoint.checkpoint_path(tmp_path / how, step)).state_dict()
            for how in ("auto", "off")
        ]
        for name, weight in saved[0].items():
            torch.testing.assert_close(weight, saved[1][name], rtol=5e-2, atol=5e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_processes_replay_steps_and_lose_the_same(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(tiny, stream)
    for how in ("auto", "off"):
        changes = settings(cuda_graph=how, compile="off", ema=0.9, log_every=1)
        options = [part for key, value in changes.items() for part in ("-o", f"{key}={value}")]
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python",
            sys.executable, "-c", "import sys; from policysmith.schemas.console import build_and_train; sys.exit(build_and_train())",
            str(path), "--output", str(tmp_path / how), *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "gradients are added up between its halves" in notes(tmp_path / "auto")
    assert "CUDA graph" not in notes(tmp_path / "off")
    for name in ("loss", "grad_norm"):
        replayed, plain = (torch.tensor(logged(tmp_path / how, name)) for how in ("auto", "off"))
        torch.testing.assert_close(replayed, plain, rtol=5e-2, atol=5e-3)


def test_a_replayed_run_goes_on_from_its_checkpoint(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override(
        settings(steps=80, save_every=40, keep=5, compile="off", log_every=1)
    )
    whole = builder.train(output=tmp_path / "run", device="cuda").checkpoint
    expected, through = AutoModel.from_pretrained(whole).state_dict(), losses(tmp_path / "run")
    shutil.rmtree(whole)
    again = builder.train(output=tmp_path / "run", resume=True, device="cuda").checkpoint
    assert losses(tmp_path / "run")[-40:] == pytest.approx(through[-40:], rel=1e-2, abs=1e-3)
    for name, weight in AutoModel.from_pretrained(again).state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


def test_a_step_that_waits_for_the_gpu_is_not_captured(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.components.heads.mlp import MlpHead

    good = MlpHead.loss

    def waiting(self: MlpHead, *args: Any) -> dict[str, torch.Tensor]:
        terms = good(self, *args)
        if terms["loss"].is_cuda:
            terms["loss"].detach().item()
        return terms

    monkeypatch.setattr(MlpHead, "loss", waiting)
    Builder.from_recipe(tiny).override(settings(compile="off")).train(output=tmp_path / "run", device="cuda")
    assert "no CUDA graph: a step waits for the GPU" in notes(tmp_path / "run")


def test_a_capture_that_fails_leaves_the_run_as_it_is(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.components.heads.mlp import MlpHead

    plain = Builder.from_recipe(tiny).override(settings(compile="off", cuda_graph="off", log_every=1))
    plain.train(output=tmp_path / "plain", device="cuda")
    good = MlpHead.loss

    def unseen(self: MlpHead, *args: Any) -> dict[str, torch.Tensor]:
        terms = good(self, *args)
        if terms["loss"].is_cuda:
            event = torch.cuda.Event()
            event.record()
            event.query()  # does not wait, and cannot be captured
        return terms

    monkeypatch.setattr(MlpHead, "loss", unseen)
    failing = Builder.from_recipe(tiny).override(settings(compile="off", log_every=1))
    failing.train(output=tmp_path / "run", device="cuda")
    assert "no CUDA graph: a step could not be captured" in notes(tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=2e-2, abs=2e-3)
    torch.manual_seed(0)
    assert torch.randn(3, device="cuda").isfinite().all()


def test_a_step_that_counts_on_the_host_is_found_out(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.components.heads.mlp import MlpHead

    good, calls = MlpHead.loss, {"count": 0}

    def counting(self: MlpHead, *args: Any) -> dict[str, torch.Tensor]:
        calls["count"] += 1
        return {"loss": good(self, *args)["loss"] * (1.0 + calls["count"])}

    monkeypatch.setattr(MlpHead, "loss", counting)
    Builder.from_recipe(tiny).override(settings(compile="off")).train(output=tmp_path / "run", device="cuda")
    assert "drawn or counted on the host" in notes(tmp_path / "run")


def test_what_changes_on_the_host_later_is_found_out_too(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.components.heads.mlp import MlpHead

    good, factor = MlpHead.loss, {"now": 1.0}

    class Late:
        def start(self, step: int, steps: int) -> None: ...

        def advance(self, step: int) -> None:
            factor["now"] = 2.0 if step > 40 else 1.0

        def log(self, step: int, values: dict[str, float]) -> None: ...

        def note(self, message: str) -> None: ...

        def close(self) -> None: ...

    def scaled(self: MlpHead, *args: Any) -> dict[str, torch.Tensor]:
        return {"loss": good(self, *args)["loss"] * factor["now"]}

    monkeypatch.setattr(MlpHead, "loss", scaled)
    monkeypatch.setattr(loop, "StepGraph", partial(StepGraph, settings=Settings(again=10)))
    builder = Builder.from_recipe(tiny).override(settings(compile="off"))
    builder.train(output=tmp_path / "run", device="cuda", reporters=(Late(),))
    assert "replayed as a CUDA graph" in notes(tmp_path / "run")
    assert "up to 10 steps before this one did not see them change" in notes(tmp_path / "run")


def test_a_replayed_loss_that_is_not_finite_stops_the_run(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, calls = StepGraph.__call__, {"count": 0}

    def poisoned(self: StepGraph, batches: list[dict[str, Any]], seeds: list[int]) -> Any:
        calls["count"] += 1
        if calls["count"] == 36:
            batches[0]["observation.state"].fill_(float("nan"))
        return good(self, batches, seeds)

    monkeypatch.setattr(StepGraph, "__call__", poisoned)
    builder = Builder.from_recipe(tiny).override(settings(compile="off", log_every=10))
    with pytest.raises(TrainingError, match="not finite at step 35"):
        builder.train(output=tmp_path / "run", device="cuda")
    assert "replayed as a CUDA graph" in notes(tmp_path / "run")
    saved = checkpoint.checkpoints(tmp_path / "run")[-1]
    assert saved.name == "step-00000035"
    assert all(torch.isfinite(p).all() for p in AutoModel.from_pretrained(saved).parameters())


def test_images_go_through_one_kernel(tiny: dict[str, Any], tmp_path: Path) -> None:
    builder = Builder.from_recipe(tiny).override(settings(steps=3))
    builder.train(output=tmp_path / "run", device="cuda")
    assert "images go through one kernel: `random_shift`" in notes(tmp_path / "run")
