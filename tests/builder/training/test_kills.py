"""Killed at any moment and resumed, a run ends with the bits of the uninterrupted one, and leaves nothing behind.

A server imports everything once and forks a child for every attempt, so that a kill costs no import.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from policysmith.builder import Builder

ROOT = Path(__file__).parents[3]
STEPS = 12
KILLS = 40

SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "diffusion with EMA": ({"recipe": "diffusion_policy", "training.ema": 0.99}, 1),
    "accumulation": ({"recipe": "act", "training.accumulate": 2}, 1),
    "two workers": ({"recipe": "vit_mlp", "training.workers": 2}, 1),
    "two processes": ({"recipe": "vit_mlp"}, 2),
    "FSDP2": ({"recipe": "act", "training.sharding": "full"}, 2),
}
"""Changes to a recipe in `recipes/tiny`, and processes."""


def builder(setting: str) -> Builder:
    changes = dict(SETTINGS[setting][0])
    source = ROOT / "recipes" / "tiny" / f"{changes.pop('recipe')}.yaml"
    short = {"training.steps": STEPS, "training.save_every": 2, "training.keep": 2, "training.batch_size": 4}
    return Builder.from_recipe(source).override({**short, "data.episodes": [0, 1], **changes})


def attempt(setting: str, run: Path) -> list[int]:
    """Start or resume a run in separate processes, in one group each, and return their numbers."""
    count = SETTINGS[setting][1]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            os.setpgid(0, 0)
            silent = os.open(run.with_suffix(f".{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            if count > 1:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(count),
                    LOCAL_WORLD_SIZE=str(count),
                    MASTER_ADDR="localhost",
                    MASTER_PORT=str(port),
                )
            torch.set_num_threads(1)
            builder(setting).train(output=run, resume=True, device="cpu")
            code = 0
        except BaseException:  # noqa: BLE001  (the child reports it and ends)
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return children


def wait(children: list[int], until: float | None) -> bool | None:
    """Return whether all ended well; kill them and return None if time is up before any failed."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            for child in set(children) - codes.keys():
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return False if any(codes.values()) else None
        time.sleep(0.005)
    return not any(codes.values())


def campaign(setting: str, folder: Path, kills: int) -> str:
    """Run the whole trial; return the failure, if any."""
    start = time.monotonic()
    whole = folder / "whole"
    if not wait(attempt(setting, whole), start + 600):
        return f"the uninterrupted run failed: {logs(whole)}"
    length = time.monotonic() - start
    chance, killed, number = random.Random(setting), 0, 0
    while killed < kills:
        run = folder / f"run{number}"
        number += 1
        while True:
            late = killed >= kills
            delay = None if late else time.monotonic() + chance.uniform(0.1, 1.1) * length
            ended = wait(attempt(setting, run), delay)
            if ended is False:
                return f"an attempt failed after {killed} kills: {logs(run)}"
            if ended:
                break
            killed += 1
        if problem := differs(whole, run):
            return f"{problem} (after {killed} kills)"
    return ""


def differs(whole: Path, run: Path) -> str:
    names = [sorted(path.name for path in (where / "checkpoints").iterdir()) for where in (whole, run)]
    if names[0] != names[1]:
        return f"left over: {names[1]}"
    if [path.name for path in run.iterdir() if path.name.startswith(".")]:
        return f"left over: {sorted(path.name for path in run.iterdir())}"
    if (run / "policy").readlink() != (whole / "policy").readlink():
        return "the link is stale"
    one, two = (load_file(where / "policy" / "model.safetensors") for where in (whole, run))
    if one.keys() != two.keys() or not all(torch.equal(one[name], two[name]) for name in one):
        return "other weights"
    states = [torch.load(where / "policy" / "training.pt", weights_only=True) for where in (whole, run)]
    for part in ("optimizer", "average", "weights"):
        one, two = (_tensors(state[part]) for state in states)
        if one.keys() != two.keys() or not all(torch.equal(one[name], two[name]) for name in one):
            return f"other tensors in `{part}`"
    return ""


def _tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor of nested dictionaries by its path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else ()
    return {path: leaf for key, item in items for path, leaf in _tensors(item, f"{name}/{key}").items()}


def logs(run: Path) -> str:
    return "".join(path.read_text()[-1500:] for path in sorted(run.parent.glob(f"{run.name}.*.log")))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_runs_end_with_the_same_bits(setting: str, tmp_path: Path, frame_cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, setting, str(tmp_path), str(KILLS)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "POLICYSMITH_CACHE": str(frame_cache),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("all is well\n"), done.stdout + done.stderr


def main(arguments: list[str], tell: Callable[[str], object] = sys.stdout.write) -> None:
    setting, folder, kills = arguments
    builder(setting).datasets()  # frames are decoded once
    tell((campaign(setting, Path(folder), int(kills)) or "all is well") + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
