"""`policysmith rollout`, local and against a server, beside `policysmith evaluate`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder import BasePolicyModel, Builder
from policysmith.builder.data.lerobot.info import inspect
from policysmith.builder.evaluation.rollout import roll_out
from policysmith.builder.planning.checks.compatibility import needs_of
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.builder.serving.server import PolicyServer
from policysmith.builder.simulation.base import make
from policysmith.builder.simulation.seeds import evaluation_seed
from policysmith.schemas import console

ROOT = Path(__file__).parents[3]
ENV = "metaworld/drawer-open-v3"
ARM = """
import numpy as np
import policysmith

class Arm(policysmith.Robot):
    name, fps, task = "arm", 80, "Open the drawer"
    cameras = ("corner2",)
    state_names = ("hand_x", "hand_y", "hand_z", "gripper_opening")
    action_names = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
    def reset(self, seed): self.steps = 0
    def observe(self):
        return {"observation.images.corner2": np.zeros((3, 96, 96), np.uint8), "observation.state": np.zeros(4), "task": self.task}
    def act(self, action): self.steps += 1
    def stop(self): pass
    def success(self): return self.steps >= 3
"""


@pytest.fixture(scope="module")
def saved(make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "policy"
    Builder.from_recipe(make_tiny()).build().save_pretrained(directory)
    return directory


def serving(policy: BasePolicyModel) -> Any:
    """Return a context with the address of a server, as in the tests of serving."""
    path = ROOT / "tests" / "builder" / "serving" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serving_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.running(PolicyServer(policy))


def test_a_robot_of_a_file_is_driven_by_a_server_and_recorded(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arm.py").write_text(ARM)
    words = [
        "rollout",
        "--robot",
        f"{tmp_path / 'arm.py'}:Arm",
        "--episodes",
        "2",
        "--record",
        str(tmp_path / "seen"),
    ]
    with serving(SavedPolicy.find(saved).load()) as address:
        assert console.policysmith([*words, "--server", address]) == console.OK
    said = capsys.readouterr().out
    assert "episode 1: success after 3 steps" in said
    assert "success 2 of 2, 95 % interval 34 to 100 %" in said
    assert inspect(tmp_path / "seen").episode_lengths == (3, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--robot", "{arm}:Arm"], "name either a run or a server"),
        (["{saved}", "--robot", "{arm}:Leg"], "defines no `Leg`"),
        (["{saved}", "--robot", "{arm}.txt:Arm"], "not a Python file"),
        (["{saved}", "--robot", "{arm}:Wrong"], "reads camera `corner2`"),
        (["{saved}", "--robot", "{arm}:Arm", "--simulated-delay", "2"], "needs `--think-ahead`"),
        (
            ["{saved}", "--robot", "{arm}:Arm", "--simulated-delay", "2", "--think-ahead", "plain"],
            "not simulated",
        ),
        (["--server", "ws://127.0.0.1:9", "--robot", "{arm}:Arm"], "cannot be reached"),
    ],
)
def test_what_cannot_be_driven_is_named(
    words: list[str], said: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arm.py").write_text(ARM + "\nclass Wrong(Arm):\n    cameras = ('top',)\n")
    told = [word.format(saved=saved, arm=tmp_path / "arm.py") for word in words]
    assert console.policysmith(["rollout", *told]) in (console.BUILD_FAILED, console.TRAINING_FAILED)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("server", [False, True], ids=["local", "server"])
def test_a_robot_acts_while_its_policy_thinks(
    server: bool, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arm.py").write_text(ARM)
    words = ["rollout", "--robot", f"{tmp_path / 'arm.py'}:Arm", "--think-ahead", "plain", "--late", "wait"]
    if server:
        with serving(SavedPolicy.find(saved).load()) as address:
            assert console.policysmith([*words, "--server", address]) == console.OK
    else:
        assert console.policysmith([*words, str(saved), "--device", "cpu"]) == console.OK
    said = capsys.readouterr().out
    assert "success after 3 steps" in said
    assert "steps had no action in time" in said


@pytest.mark.sim
def test_a_rollout_is_what_evaluation_measures(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same actions, step by step, here and through a server."""
    found = SavedPolicy.find(saved)
    policy, environment = found.load(), make(ENV, image_size=96)
    taken: list[list[list[float]]] = [[]]
    step = type(environment).step

    def watch(self: Any, action: Any) -> Any:
        taken[-1].append(action.tolist())
        return step(self, action)

    monkeypatch.setattr(type(environment), "step", watch)
    monkeypatch.setattr(environment, "max_steps", 8)
    roll_out(policy, environment, index=0, seed=evaluation_seed(10_000, 0), needs=needs_of(found))
    environment.close()
    words = ["rollout", "--robot", ENV, "--max-steps", "8"]
    taken.append([])
    assert console.policysmith([*words, str(saved), "--device", "cpu"]) == console.OK
    taken.append([])
    with serving(policy) as address:
        assert console.policysmith([*words, "--server", address]) == console.OK
    assert len(taken[0]) == 8
    assert taken[1] == taken[0]
    assert taken[2] == taken[0]
    assert "step limit after 8 steps" in capsys.readouterr().out
