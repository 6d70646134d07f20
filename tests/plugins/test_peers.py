"""Other projects' own programs against this one, in environments that `tools/peers.sh` creates."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policysmith.builder import Builder
from policysmith.builder.inference.example import example_samples

ROOT = Path(__file__).parents[2]
ACT = ROOT / "recipes" / "tiny" / "act.yaml"
Peer = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    path = f"{ROOT / '.namespace'}:{ROOT / 'plugins' / 'lerobot_policy_policysmith'}"
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "MUJOCO_GL": "egl"}


def home(peer: str) -> Path:
    folder = Path(os.environ.get("POLICYSMITH_PEERS", ROOT / ".peers")) / peer
    if not (folder / "bin" / "python").exists():
        pytest.skip(f"there is no {folder}; run tools/peers.sh python3.12")
    return folder / "bin"


def run(*words: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def act(tmp_path: Path) -> Path:
    Builder.from_recipe(ACT).build().save_pretrained(tmp_path / "act")
    return tmp_path / "act"


def test_lerobot_trains_a_recipe_and_resumes(tmp_path: Path) -> None:
    train, output = home("lerobot") / "lerobot-train", tmp_path / "run"
    options = {
        "policy.type": "policysmith",
        "policy.recipe": str(ACT),
        "policy.device": "cpu",
        "policy.push_to_hub": "false",
        "dataset.repo_id": "lab/drawer",
        "dataset.root": str(ROOT / "recipes" / "datasets" / "drawer_open"),
        "steps": "2",
        "batch_size": "2",
        "num_workers": "0",
        "wandb.enable": "false",
        "output_dir": str(output),
    }
    assert "End of training" in run(train, *(f"--{key}={value}" for key, value in options.items()))
    saved = output / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    assert "End of training" in run(train, f"--config_path={saved}", "--resume=true", "--steps=3")
    assert (output / "checkpoints" / "000003").is_dir()


def test_lerobot_acts_as_the_policy_does(act: Path, tmp_path: Path) -> None:
    python, converted = home("lerobot") / "python", tmp_path / "converted"
    run(python, "-m", "lerobot_policy_policysmith", act, converted)
    code = f"""
import torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
policy = get_policy_class("policysmith").from_pretrained({str(converted)!r})
before, after = make_pre_post_processors(policy.config, pretrained_path={str(converted)!r})
held = torch.load({str(tmp_path / "inputs.pt")!r})
batch = before({{key: value[None] for key, value in held["inputs"].items()}})
found = after(policy.predict_action_chunk(batch))
torch.testing.assert_close(found, held["expected"], rtol=1e-4, atol=1e-5)
"""
    import torch

    from policysmith.builder.saved_policy import load

    [sample] = example_samples(load(act), 1)
    key = "observation.images.corner2"
    torch.save(
        {"inputs": {**sample, key: sample[key] / 255}, "expected": load(act).predict([sample])},
        tmp_path / "inputs.pt",
    )
    run(python, "-c", code)


@pytest.mark.sim
def test_lerobot_evaluates_a_policy_in_its_own_simulation(act: Path, tmp_path: Path) -> None:
    run(home("lerobot") / "python", "-m", "lerobot_policy_policysmith", act, tmp_path / "converted")
    said = run(
        home("lerobot") / "lerobot-eval",
        f"--policy.path={tmp_path / 'converted'}",
        "--policy.device=cpu",
        "--env.type=metaworld",
        "--env.task=drawer-open-v3",
        '--rename_map={"observation.image": "observation.images.corner2"}',
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'report'}",
    )
    assert "'n_episodes': 1" in said


@pytest.fixture
def started() -> Iterator[Callable[..., None]]:
    """`started(marker, *words)`: start a program, and wait until it prints the marker."""
    running: list[subprocess.Popen[str]] = []

    def start(marker: str, *words: str | Path) -> None:
        process = subprocess.Popen(
            [str(word) for word in words],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if marker in line:
                return
        pytest.fail("".join(said)[-3000:])

    yield start
    for process in reversed(running):
        process.terminate()
        process.communicate(timeout=20)


HARNESS = """
import asyncio
import numpy as np
from vla_eval.connection import Connection

async def main():
    found = []
    async with Connection("ws://127.0.0.1:8871", timeout=60) as connection:
        for _ in range(2):
            await connection.start_episode({"task": {"name": "drawer"}})
            acted = []
            for step in range(12):
                image = np.full((96, 96, 3), 20 * step, np.uint8)
                seen = {"images": {"agentview": image}, "states": np.full(4, 0.1), "task_description": "open the drawer"}
                acted.append((await connection.act(seen))["actions"])
            await connection.end_episode({"success": False})
            found.append(np.stack(acted))
    assert found[0].shape == (12, 4), found[0].shape
    assert np.array_equal(found[0], found[1]), "an episode began with the chunk of the last one"
    assert len(np.unique(found[0], axis=0)) > 8

asyncio.run(main())
print("done")
"""


def test_vla_eval_drives_a_served_policy(act: Path, started: Callable[..., None]) -> None:
    python = home("vla-eval") / "python"
    code = "from policysmith.schemas.console import policysmith; policysmith()"
    started("ready", sys.executable, "-u", "-c", code, "serve", act, "--device", "cpu", "--port", "8870")
    adapter = ROOT / "plugins" / "vla_eval_policysmith.py"
    server = "--args.server=ws://127.0.0.1:8870"
    started("server listening", python, "-u", adapter, "--host", "127.0.0.1", "--port", "8871", server)
    assert run(python, "-c", HARNESS).endswith("done\n")
