"""The robots and the client of docs/robot.md and docs/serving.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from policysmith.builder.robots.clock import SteppedClock
from policysmith.builder.robots.loop import drive
from policysmith.builder.serving.observations import read_map

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall((DOCS / page).read_text()) if kind == language]


class Home:
    """Goes to the origin."""

    def select_action(self, observation: Any, generator: Any = None, *, clamp: bool = False) -> torch.Tensor:
        return -2.0 * torch.from_numpy(np.array(observation["observation.state"]))

    def reset(self) -> None: ...


def test_the_robot_of_ones_own_reaches_its_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(blocks("robot.md", "python")[0], names)  # noqa: S102
    robot = names["PointMass"]()
    monkeypatch.setattr(type(robot), "clock", SteppedClock())
    episode = drive(robot, Home(), seed=0)
    assert episode.end == "success"
    assert episode.clamped > 0


def test_the_adapter_of_the_so101_speaks_to_lerobots_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, float]] = []

    class Follower:
        def __init__(self, config: Any) -> None:
            self.config = config

        def connect(self) -> None: ...

        def disconnect(self) -> None:
            sent.append({})

        def get_observation(self) -> dict[str, Any]:
            return {
                **dict.fromkeys(names["So101"].state_names, 90.0),
                "front": np.zeros((480, 640, 3), np.uint8),
            }

        def send_action(self, action: dict[str, float]) -> None:
            sent.append(action)

    for name, members in {
        "lerobot": {},
        "lerobot.cameras": {},
        "lerobot.cameras.opencv": {"OpenCVCameraConfig": SimpleNamespace},
        "lerobot.robots": {},
        "lerobot.robots.so_follower": {"SO101Follower": Follower, "SO101FollowerConfig": SimpleNamespace},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("builtins.input", lambda text: "")
    names: dict[str, Any] = {}
    exec(blocks("robot.md", "python")[1], names)  # noqa: S102
    robot = names["So101"]()
    assert robot.observe()["observation.images.front"].shape == (3, 480, 640)
    drive(robot, Home(), max_steps=2)
    robot.close()
    assert [list(action.values()) for action in sent[:2]] == [
        [-100.0, -100.0, -95.0, -100.0, -160.0, 0.0]
    ] * 2
    assert list(sent[2].values()) == [90.0] * 6  # where it was seen last
    assert sent[3] == {}


def test_the_map_of_the_page_is_read(tmp_path: Path) -> None:
    (tmp_path / "robot.yaml").write_text(blocks("serving.md", "yaml")[0])
    expected = {"observation.images.corner2": "images/cam_high", "observation.state": "state"}
    assert read_map([str(tmp_path / "robot.yaml")]) == expected
    assert read_map([f"{ours}={theirs}" for ours, theirs in expected.items()]) == expected
