"""The files of a run: damaged, mixed up, left behind, locked, read while others are written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from policysmith.builder import Builder, runs
from policysmith.builder.exporting.export import export
from policysmith.builder.policy.storage import manifest
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.errors import CheckpointError

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of three steps with three checkpoints."""
    run = tmp_path_factory.mktemp("trained") / "run"
    recipe = make_tiny()
    recipe["training"] |= {"steps": 3, "save_every": 1, "keep": 9, "ema": 0.9}
    Builder.from_recipe(recipe).train(output=run, device="cpu")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Copy the run."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


@pytest.fixture
def builder(make_tiny: Callable[[], dict[str, Any]]) -> Builder:
    recipe = make_tiny()
    recipe["training"] |= {"steps": 3, "save_every": 1, "keep": 9, "ema": 0.9}
    return Builder.from_recipe(recipe)


def newest(run: Path) -> Path:
    return runs.checkpoints(run)[-1]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        weights = {name: change(value).contiguous() for name, value in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})

    return damage


def take(name: str) -> Damage:
    return lambda checkpoint: shutil.copy(checkpoint.parent / "step-00000002" / name, checkpoint / name)


DAMAGES: dict[str, tuple[str, Damage]] = {
    "a bit of the weights": ("model.safetensors", lambda c: flip_a_bit(c / "model.safetensors")),
    "a bit of the state": ("training.pt", lambda c: flip_a_bit(c / "training.pt")),
    "a bit of the recipe": ("recipe.lock.yaml", lambda c: flip_a_bit(c / "recipe.lock.yaml")),
    "half of the weights zero": ("model.safetensors", change_weights(lambda v: v * (torch.arange(v.shape[0]) % 2).view(-1, *[1] * (v.ndim - 1)))),
    "weights in half precision": ("model.safetensors", change_weights(torch.Tensor.half)),
    "weights of another step": ("model.safetensors", take("model.safetensors")),
    "state of another step": ("training.pt", take("training.pt")),
    "no shim": ("policy_shim.py", lambda c: (c / "policy_shim.py").unlink()),
    "another manifest": ("config.json|model.safetensors|training.pt", take("manifest.json")),
    "a manifest that is edited": ("manifest.json", lambda c: (c / "manifest.json").write_text((c / "manifest.json").read_text().replace('"step": 3', '"step": 2'))),
    "an empty manifest": ("manifest.json", lambda c: (c / "manifest.json").write_text("")),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_files_that_were_not_saved_together_are_refused_wherever_they_are_read(
    what: str, run: Path, builder: Builder, tmp_path: Path
) -> None:
    named, damage = DAMAGES[what]
    damage(newest(run))
    message = rf"step-00000003/({named}).*(use another checkpoint of the run|remove manifest\.json)"
    with pytest.raises(CheckpointError, match=message):
        builder.train(output=run, resume=True, device="cpu")
    for path in (run, run / "policy", newest(run)):
        with pytest.raises(CheckpointError, match=message):
            SavedPolicy.find(path)
    with pytest.raises(CheckpointError, match=message):
        export(run, tmp_path / "exported")
    if "training.pt" not in named:
        with pytest.raises(CheckpointError, match=message):
            AutoModel.from_pretrained(run / "policy")


def test_changes_of_ones_own_load_on_demand(run: Path, tmp_path: Path) -> None:
    checkpoint = newest(run)
    change_weights(torch.zeros_like)(checkpoint)
    with pytest.raises(CheckpointError):
        AutoModel.from_pretrained(checkpoint)
    loaded = AutoModel.from_pretrained(checkpoint, verify=False)
    assert not any(weight.any() for weight in loaded.parameters())
    export(run, tmp_path / "exported", verify=False)
    (checkpoint / manifest.NAME).unlink()
    AutoModel.from_pretrained(checkpoint)
    AutoModel.from_pretrained(tmp_path / "exported")  # has a manifest of its own


def test_a_checkpoint_can_be_used_without_the_state_of_training(run: Path) -> None:
    (newest(run) / "training.pt").unlink()
    AutoModel.from_pretrained(run / "policy")
    SavedPolicy.find(run).load()


def edited(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(checkpoint: Path) -> None:
        state = torch.load(checkpoint / "training.pt", weights_only=True)
        change(state)
        torch.save(state, checkpoint / "training.pt")

    return damage


def moments(state: dict[str, Any]) -> dict[str, Any]:
    return state["optimizer"]["state"][1]


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "other shape": lambda s: moments(s).update(exp_avg=torch.zeros(3)),
    "more dimensions": lambda s: moments(s).update(exp_avg=moments(s)["exp_avg"][None]),
    "all other shapes": lambda s: [m.update(exp_avg=torch.zeros(1), exp_avg_sq=torch.zeros(1)) for m in s["optimizer"]["state"].values()],
    "transposed": lambda s: s["optimizer"]["state"].update({k: {n: v.flatten()[:-1] if v.ndim else v for n, v in m.items()} for k, m in s["optimizer"]["state"].items()}),
    "expanded": lambda s: moments(s).update(exp_avg=torch.zeros(1).expand(moments(s)["exp_avg"].shape)),
    "half": lambda s: moments(s).update(exp_avg=moments(s)["exp_avg"].half()),
    "nan": lambda s: moments(s)["exp_avg"].view(-1)[:1].fill_(float("nan")),
    "negative squares": lambda s: moments(s)["exp_avg_sq"].view(-1)[:1].fill_(-1.0),
    "shared": lambda s: moments(s).update(exp_avg_sq=moments(s)["exp_avg"]),
    "sparse": lambda s: moments(s).update(exp_avg=moments(s)["exp_avg"].to_sparse()),
    "a list": lambda s: moments(s).update(exp_avg=[0.0]),
    "no square": lambda s: moments(s).pop("exp_avg_sq"),
    "more moments": lambda s: moments(s).update(max_exp_avg_sq=torch.zeros(1)),
    "unknown weight": lambda s: s["optimizer"]["state"].update({10_000: moments(s)}),
    "named weight": lambda s: s["optimizer"]["state"].update({"a": moments(s)}),
    "too many steps": lambda s: moments(s).update(step=torch.tensor(9.0)),
    "half a step": lambda s: moments(s).update(step=torch.tensor(1.5)),
    "many steps": lambda s: moments(s).update(step=torch.ones(2)),
    "no group": lambda s: s["optimizer"]["param_groups"].pop(),
    "fewer weights": lambda s: s["optimizer"]["param_groups"][0]["params"].pop(),
    "other weights": lambda s: s["optimizer"]["param_groups"][0]["names"].reverse(),
    "other betas": lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.5, 0.5)),
    "no decay": lambda s: s["optimizer"]["param_groups"][0].pop("weight_decay"),
    "rate": lambda s: s["optimizer"]["param_groups"][0].update(lr=float("inf")),
    "no optimizer": lambda s: s.update(optimizer=None),
    "no state": lambda s: s["optimizer"].pop("state"),
    "step": lambda s: s.update(step=2),
    "negative step": lambda s: s.update(step=-1),
    "a step that is true": lambda s: s.update(step=True),
    "a step in text": lambda s: s.update(step="3"),
    "no average": lambda s: s.update(average=None),
    "other average": lambda s: s["average"].update({next(iter(s["average"])): torch.zeros(2)}),
    "average of others": lambda s: s["average"].update(other=torch.zeros(2)),
    "infinite weights": lambda s: next(iter(s["weights"].values())).fill_(float("inf")),
    "no identity": lambda s: s.update(identity={}),
    "no recipe": lambda s: s["identity"].update(recipe=[]),
    "a key less": lambda s: s.pop("weights"),
    "a key more": lambda s: s.update(more=1),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_does_not_fit_is_refused_before_anything_is_taken_from_it(
    what: str, run: Path, builder: Builder
) -> None:
    """Refuse it even without the manifest."""
    edited(STATES[what])(newest(run))
    (newest(run) / manifest.NAME).unlink()
    with pytest.raises(CheckpointError, match=r"training\.pt is damaged \(.*to resume from the one before"):
        builder.train(output=run, resume=True, device="cpu")


def test_the_link_is_repaired_by_whoever_finds_it(run: Path, builder: Builder, tmp_path: Path) -> None:
    def stale() -> None:
        (run / "policy").unlink()
        (run / "policy").symlink_to("checkpoints/step-00000001")

    finders: list[Callable[[], object]] = [
        lambda: SavedPolicy.find(run),
        lambda: SavedPolicy.find(run / "policy"),
        lambda: AutoModel.from_pretrained(run / "policy"),
        lambda: export(run, tmp_path / "exported"),
        lambda: builder.train(output=run, resume=True, device="cpu"),
    ]
    for find in finders:
        stale()
        find()
        assert (run / "policy").readlink().name == "step-00000003"
    stale()
    loaded = AutoModel.from_pretrained(run / "policy").state_dict()
    wanted = AutoModel.from_pretrained(newest(run)).state_dict()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_a_link_to_a_checkpoint_that_is_gone_is_repaired(run: Path, tmp_path: Path) -> None:
    for find in (SavedPolicy.find, lambda policy: export(policy, tmp_path / "exported")):
        (run / "policy").unlink()
        (run / "policy").symlink_to("checkpoints/step-00000099")
        find(run / "policy")
        assert (run / "policy").readlink().name == "step-00000003"


def test_a_run_that_cannot_be_written_to_is_read_by_its_newest_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "policy").unlink()
    (run / "policy").symlink_to("checkpoints/step-00000001")

    def refuse(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert SavedPolicy.find(run).directory.name == "step-00000003"
    assert Path(AutoModel.from_pretrained(run / "policy").config.name_or_path).name == "step-00000003"


def test_what_killed_processes_left_is_swept_at_the_next_start(run: Path, builder: Builder) -> None:
    folder = run / "checkpoints"
    for name in (
        ".step-00000004.staging-elsewhere-12",
        "..step-00000004.staging-elsewhere-12.staging-elsewhere-12",
        ".step-00000001.pruned-elsewhere-12",
        ".step-00000002.former",
    ):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("")
    (run / ".policy-elsewhere-12").symlink_to("checkpoints")
    (run / ".lock").write_text("process 12 on elsewhere\n")
    builder.override({"training.keep": 2}).train(output=run, resume=True, device="cpu")
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


HOLD = """
import sys
from pathlib import Path
from policysmith.builder import runs

with runs.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_trains_in_a_directory(run: Path, builder: Builder) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=rf"in use: process {other.pid} on .* another `--output`"):
        builder.train(output=run, resume=True, device="cpu")
    other.kill()
    other.communicate()
    builder.train(output=run, resume=True, device="cpu")
    assert not (run / ".lock").exists()


def test_a_worker_that_outlives_the_run_does_not_hold_its_directory(tmp_path: Path) -> None:
    ready, go = os.pipe()
    with runs.held(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(ready, 1)
            os._exit(0)
    with runs.held(tmp_path / "run"):
        pass
    os.close(go)
    os.waitpid(child, 0)


def test_a_refused_run_leaves_no_directory(tmp_path: Path, builder: Builder) -> None:
    with pytest.raises(Exception, match="more than the"):
        builder.override({"training.batch_size": 10**6}).train(output=tmp_path / "a", device="cpu")
    assert not (tmp_path / "a").exists()


def test_an_output_that_is_no_directory_is_told_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    from policysmith.schemas import console

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"recipe": 1, "name": "x", "data": {"path": "none"}, "policy": {"backbones": {"a": {"type": "mlp"}}, "head": {"type": "mlp"}}, "training": {"steps": 1}}))  # fmt: skip
    for output in ("file", "file/run"):
        assert console.build_and_train([str(recipe), "--output", str(tmp_path / output)]) == 4
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checkpoint_that_is_read_is_not_pruned(run: Path) -> None:
    saved = SavedPolicy.find(newest(run).with_name("step-00000001"))
    runs.prune(run, 1)
    assert [path.name for path in runs.checkpoints(run)] == ["step-00000001", "step-00000003"]
    saved.load()
    del saved
    runs.prune(run, 1)
    assert [path.name for path in runs.checkpoints(run)] == ["step-00000003"]


def test_a_policy_is_found_while_checkpoints_come_and_go(run: Path) -> None:
    """Save and prune in a thread, as a run does, as fast as possible."""
    stop = threading.Event()
    source = shutil.copytree(newest(run), run / "source")

    def train() -> None:
        step = 3
        while not stop.is_set():
            step += 1
            shutil.copytree(source, run / "checkpoints" / f".step-{step:08d}.staging-x-1")
            (run / "checkpoints" / f".step-{step:08d}.staging-x-1").rename(runs.checkpoint_path(run, step))
            runs.point(run)
            runs.prune(run, 1)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(25):
            saved = SavedPolicy.find(run)
            assert (saved.directory / "model.safetensors").exists()
            saved.load()
            AutoModel.from_pretrained(run / "policy")
    finally:
        stop.set()
        trainer.join()
