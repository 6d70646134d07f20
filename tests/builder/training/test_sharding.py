"""Weights sharded over gloo processes, started by `torchrun`, learn what one process learns with the whole batch."""

from __future__ import annotations

import json
import os
import shutil
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
from policysmith.builder.training.distributed.sharding import shard
from policysmith.schemas.errors import TrainingError


@pytest.fixture
def recipe(tiny: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without padding, whose mean each process would take separately."""
    tiny["data"]["horizon"], tiny["policy"]["execute"] = 1, 1
    tiny["training"] |= {"steps": 12, "ema": 0.5, "save_every": 6, "keep": 5, "log_every": 1}
    return tiny


def trained(
    recipe: dict[str, Any],
    folder: Path,
    name: str,
    *options: str,
    processes: int = 2,
    machines: int = 1,
) -> str:
    """Train a recipe under `torchrun` into `<folder>/<name>`, on several simulated machines; return the output."""
    path = folder / "tiny.yaml"
    with path.open("w") as stream:
        YAML().dump(recipe, stream)
    binaries, runs = Path(sys.executable).parent, []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for machine in range(machines):
        command = [
            binaries / "torchrun", "--no-python", f"--nproc-per-node={processes // machines}", f"--nnodes={machines}",
            f"--node-rank={machine}", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{29400 + os.getpid() % 500}",
            binaries / "build-and-train", path, "--output", folder / name, "--device", "cpu", *options,
        ]  # fmt: skip
        runs.append(
            subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [run.communicate(timeout=240) for run in runs]
    assert all(run.returncode == 0 for run in runs), said
    return "".join(out for out, _ in said)


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(state.items())])


def weights(run: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = AutoModel.from_pretrained(run).state_dict()
    return state


def logged(run: Path, value: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = [line[value] for line in lines if value in line]
    assert found
    return found


def norms(run: Path) -> list[float]:
    return logged(run, "grad_norm")


def changes_alike(recipe: dict[str, Any], one: Path, other: Path) -> bool:
    initial = flat(Builder.from_recipe(recipe).build().state_dict())
    first, second = (flat(weights(run / "policy")) - initial for run in (one, other))
    # AdamW turns rounding of vanishing gradients into whole steps, so single weights may differ.
    return bool(torch.cosine_similarity(first, second, dim=0) > 0.999)


def test_two_processes_learn_what_one_does_and_go_on_from_their_checkpoint(
    recipe: dict[str, Any], tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    recipe["data"]["validation"] = 0.25
    alone = Builder.from_recipe(recipe).override({"training.batch_size": 8})
    alone.train(output=tmp_path / "one", device="cpu")
    recipe["training"]["sharding"] = "full"
    said = trained(recipe, tmp_path, "two")
    assert "2 processes (FSDP2) on cpu, fp32" in said
    for value in ("grad_norm", "validation/loss"):
        ours, theirs = (logged(tmp_path / run, value) for run in ("two", "one"))
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert changes_alike(recipe, tmp_path / "one", tmp_path / "two")
    last = checkpoint.checkpoints(tmp_path / "two")[-1]
    expected, moments = (
        weights(last),
        torch.load(last / "training.pt", weights_only=True)["optimizer"]["state"],
    )
    shutil.rmtree(last)
    again = ("--output", tmp_path / "two", "--device", "cpu", "--resume")
    done = command(["build-and-train", tmp_path / "tiny.yaml", *again], tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    for name, value in weights(last).items():
        assert torch.equal(value, expected[name]), name
    resumed = torch.load(last / "training.pt", weights_only=True)["optimizer"]["state"]
    for key, state in resumed.items():
        for name, value in state.items():
            assert torch.equal(value, moments[key][name])


@pytest.fixture
def looked_into(recipe: dict[str, Any]) -> dict[str, Any]:
    """Train an expert that reads keys and values inside the layers of a language model, as in pi0."""
    recipe["collator"] = {"type": "language", "tokenizer": "policysmith/tiny", "max_length": 24}
    network = {"type": "expert", "width": 32, "hidden": 64, "heads": 2}
    recipe["policy"]["backbones"] = {
        "vlm": {"type": "vlm", "architecture": "policysmith/tiny-paligemma"},
        "proprio": {"type": "state"},
    }
    recipe["policy"]["head"] = {
        "type": "flow_matching",
        "reads": ["vlm.key_values", "proprio.tokens"],
        "network": network,
    }
    recipe["transforms"] = [
        {"type": "resize", "size": 32},
        {"type": "normalize_image", "stats": "half"},
        {"type": "normalize", "mode": "mean_std"},
    ]
    return recipe


@pytest.mark.slow
def test_layers_whose_keys_and_values_others_read_are_spread_too(
    looked_into: dict[str, Any], tmp_path: Path
) -> None:
    looked_into["training"] |= {"steps": 3, "ema": None}
    trained(looked_into, tmp_path, "whole")
    looked_into["training"]["sharding"] = "full"
    assert "(FSDP2)" in trained(looked_into, tmp_path, "spread")
    assert norms(tmp_path / "spread") == pytest.approx(norms(tmp_path / "whole"), rel=1e-3)


@pytest.mark.slow
def test_validation_leaves_no_averaged_weights_behind(looked_into: dict[str, Any], tmp_path: Path) -> None:
    looked_into["data"]["validation"] = 0.25
    looked_into["training"] |= {"steps": 6, "ema": 0.999, "sharding": "full"}
    for name, every in (("often", 2), ("once", 6)):
        looked_into["training"]["save_every"] = every
        trained(looked_into, tmp_path, name)
    assert logged(tmp_path / "often", "loss") == logged(tmp_path / "once", "loss")


@pytest.mark.slow
def test_machines_hold_copies_of_what_is_spread_over_their_processes(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["training"]["batch_size"] = 2
    alone = Builder.from_recipe(recipe).override({"training.batch_size": 8})
    alone.train(output=tmp_path / "one", device="cpu")
    recipe["training"]["sharding"] = "hybrid"
    said = trained(recipe, tmp_path, "four", processes=4, machines=2)
    assert "4 processes (HSDP, 2 x 2) on cpu, fp32" in said
    assert norms(tmp_path / "four") == pytest.approx(norms(tmp_path / "one"), rel=1e-3)
    assert changes_alike(recipe, tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
def test_compiled_layers_are_spread_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"] |= {"steps": 4, "sharding": "full"}
    trained(recipe, tmp_path, "plain")
    said = trained({**recipe, "training": {**recipe["training"], "compile": "blocks"}}, tmp_path, "compiled")
    assert "compiling 1 layers one by one: `ViTLayer`" in said
    assert norms(tmp_path / "compiled") == pytest.approx(norms(tmp_path / "plain"), rel=1e-3)


@pytest.mark.slow
def test_in_bf16_layers_compute_with_bf16_weights(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"] |= {"precision": "bf16", "steps": 4}
    alone = Builder.from_recipe(recipe).override({"training.batch_size": 8})
    alone.train(output=tmp_path / "one", device="cpu")
    recipe["training"]["sharding"] = "full"
    said = trained(recipe, tmp_path, "two")
    assert "2 processes (FSDP2) on cpu, bf16" in said
    assert norms(tmp_path / "two") == pytest.approx(norms(tmp_path / "one"), rel=3e-2)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "two" / "policy").values())


def test_weights_come_together_in_what_is_computed_in(tmp_path: Path) -> None:
    from torch import distributed, nn
    from torch.distributed.device_mesh import init_device_mesh

    seen = []
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for bf16 in (True, False):
            model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            model[0].register_forward_hook(lambda layer, *_: seen.append(layer.weight.dtype))
            shard(model, list(model), init_device_mesh("cpu", (1,), mesh_dim_names=("shard",)), bf16=bf16)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model(torch.ones(1, 2)).sum().backward()
            assert all(
                p.dtype == p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None
            )
    finally:
        distributed.destroy_process_group()
    assert seen == [torch.bfloat16, torch.float32]


def test_weights_that_layers_share_are_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    mesh: Any = None
    with pytest.raises(TrainingError, match=r"`weight` is a weight of two layers \(Linear\)"):
        shard(model, list(model), mesh, bf16=False)


@pytest.mark.slow
def test_moments_in_eight_bits_are_spread_and_go_on_to_the_bit(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    alone = Builder.from_recipe(recipe).override({"training.batch_size": 8})
    alone.train(output=tmp_path / "one", device="cpu")
    recipe["training"] |= {"sharding": "full", "optimizer": {"states": "8bit"}}
    said = trained(recipe, tmp_path, "two")
    assert "moments in 8 bits: " in said
    assert norms(tmp_path / "two") == pytest.approx(norms(tmp_path / "one"), rel=2e-2)
    last = checkpoint.checkpoints(tmp_path / "two")[-1]
    expected, before = weights(last), torch.load(last / "training.pt", weights_only=True)["optimizer"]
    shutil.rmtree(last)
    trained(recipe, tmp_path, "two", "--resume")
    for name, value in weights(last).items():
        assert torch.equal(value, expected[name]), name
    again = torch.load(last / "training.pt", weights_only=True)["optimizer"]
    for key, state in again["state"].items():
        for name, value in state.items():
            assert torch.equal(value, before["state"][key][name])
    trains = dict(Builder.from_recipe(recipe).build().named_parameters())
    groups = [[trains[name] for name in group["names"]] for group in again["param_groups"]]
    torch.optim.AdamW([{"params": group} for group in groups]).load_state_dict(again)
    for index, weight in enumerate(weight for group in groups for weight in group):
        assert again["state"][index]["exp_avg_sq"].shape == weight.shape


def test_a_weight_that_cannot_be_spread_is_named() -> None:
    model = torch.nn.Linear(2, 2)
    model.temperature = torch.nn.Parameter(torch.tensor(1.0))
    mesh: Any = None
    with pytest.raises(TrainingError, match="`temperature` is a single number"):
        shard(model, [], mesh, bf16=False)


@pytest.mark.parametrize("how", ["full", "hybrid"])
def test_one_process_has_nothing_to_spread(how: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"]["sharding"] = how
    with pytest.raises(TrainingError, match="start it with `torchrun"):
        Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu")
