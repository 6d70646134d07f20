"""Names, order and rate of a policy's data and of an environment: mapped, or refused with both sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.signals import Signals, order
from policysmith.builder.evaluation.rollout import roll_out
from policysmith.builder.planning.checks.compatibility import (
    Needs,
    Reordering,
    Scene,
    check_dataset,
    check_scene,
)
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.builder.simulation.base import describe, environments, make
from policysmith.schemas.errors import SpecError

from .reach import ReachEnvironment

Refused = Callable[[Callable[[], Any]], Any]
STATE = ("x", "y", "goal_x", "goal_y")
SCENE = Scene("plane/reach", ("top",), 4, 2, 40, 30, "Reach", STATE, ("dx", "dy"))


def needs(state: Any = STATE, action: Any = ("dx", "dy"), fps: float | None = 40) -> Needs:
    names = {"observation.state": state, "action": action}
    return Needs({}, {"observation.state": 4}, 2, signals=Signals(fps, {k: v for k, v in names.items() if v}))


class Named(ReachEnvironment):
    """The plane with names."""

    state_names = STATE
    action_names = ("dx", "dy")


class Swapped:
    """A policy whose data had the goal first and the second direction first; it goes straight to the goal."""

    def reset(self) -> None:
        """Nothing to forget."""

    def select_action(self, observation: Any) -> torch.Tensor:
        goal, position = observation["observation.state"][:2], observation["observation.state"][2:]
        return torch.as_tensor((goal - position) / 0.1).clamp(-1, 1).flip(0)


def test_names_in_another_order_are_mapped_both_ways() -> None:
    ours = needs(("goal_x", "goal_y", "x", "y"), ("dy", "dx"))
    check_scene(ours, SCENE)
    mapped = Reordering.of(ours, SCENE)
    seen = mapped.observation({"observation.state": np.array([1.0, 2.0, 3.0, 4.0]), "task": ""})
    assert seen["observation.state"].tolist() == [3.0, 4.0, 1.0, 2.0]
    assert mapped.command(np.array([5.0, 6.0], dtype=np.float32)).tolist() == [6.0, 5.0]
    assert "(x, y, goal_x, goal_y)" in mapped.notes[0]
    assert "(goal_x, goal_y, x, y)" in mapped.notes[0]


def test_a_policy_of_another_order_succeeds_where_it_is_mapped() -> None:
    ours = needs(("goal_x", "goal_y", "x", "y"), ("dy", "dx"))
    rollouts = [
        roll_out(Swapped(), Named(16, False), index=0, seed=seed, needs=ours)  # type: ignore[arg-type]
        for seed in range(5)
    ]
    assert all(rollout.episode.success for rollout in rollouts)
    wrong = [
        roll_out(Swapped(), Named(16, False), index=0, seed=seed, needs=needs())  # type: ignore[arg-type]
        for seed in range(5)
    ]
    assert not all(rollout.episode.success for rollout in wrong)


@pytest.mark.parametrize(
    ("ours", "complaint"),
    [
        (needs(fps=10), "trained at 10 frames per second, plane/reach takes 40 actions per second"),
        (
            needs(("x", "y", "z", "goal_y")),
            r"as \(x, y, z, goal_y\), plane/reach as \(x, y, goal_x, goal_y\)",
        ),
        (needs(action=("dx", "rz")), r"`action` as \(dx, rz\), plane/reach as \(dx, dy\)"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_both_sides(ours: Needs, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        check_scene(ours, SCENE)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (needs(None, None, None), "does not record its rate"),
        (needs(None), "no names for `observation.state`"),
        (needs(action=None), "no names for `action`"),
    ],
)
def test_what_is_not_known_is_told(ours: Needs, said: str) -> None:
    check_scene(ours, SCENE)
    (note,) = Reordering.of(ours, SCENE).notes
    assert said in note


def test_numbers_are_no_names_and_rates_may_be_rounded() -> None:
    ours = needs(("motor_0", "motor_1", "motor_2", "motor_3"), fps=39.97)
    check_scene(ours, SCENE)
    assert Reordering.of(ours, SCENE) == Reordering()
    assert order(("a", "a"), ("a", "a")) is None
    bare = replace(SCENE, state_names=None, action_names=None)
    check_scene(needs(), bare)
    assert Reordering.of(needs(), bare) == Reordering()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Path:
    recipe = make_tiny()
    del recipe["policy"]["backbones"]["vision"]
    recipe["transforms"] = [{"type": "normalize"}]
    directory = tmp_path_factory.mktemp("saved") / "policy"
    Builder.from_recipe(recipe).build().save_pretrained(directory)
    return directory


def test_a_checkpoint_holds_names_and_rate_of_its_data(saved: Path) -> None:
    held = Signals.of_policy(SavedPolicy.find(saved).content)
    assert held.fps == 80
    assert held.names["observation.state"] == ("hand_x", "hand_y", "hand_z", "gripper_opening")
    assert held.names["action"] == ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")


def test_a_dataset_of_another_rate_or_order_is_not_judged_on(saved: Path, tmp_path: Path) -> None:
    from policysmith.builder.data.lerobot.info import inspect

    found = SavedPolicy.find(saved)
    info = inspect(found.dataset_path())
    check_dataset(found, info, "it")
    with pytest.raises(SpecError, match="trained at 80 frames per second, the dataset has 8"):
        check_dataset(found, replace(info, fps=8.0), "it")
    turned = {**info.names, "action": info.names["action"][::-1]}
    with pytest.raises(SpecError, match=r"the dataset as \(gripper_effort, hand_dz"):
        check_dataset(found, replace(info, names=turned), "it")


@pytest.mark.parametrize(
    ("env", "code", "complaint"),
    [
        ("metaworld/reach-v33", "E007 invalid-value", "did you mean `metaworld/reach-v3`"),
        ("libero/any", "E007 invalid-value", "unknown environment `libero/any`"),
    ],
)
def test_check_finds_an_environment_that_does_not_exist(
    env: str, code: str, complaint: str, tiny: dict[str, Any], to_yaml: Any, refused: Refused
) -> None:
    tiny["evaluation"] = {"env": env}
    (finding,) = refused(Builder.from_recipe(to_yaml(tiny)).check)
    assert (finding.code, finding.span.text) == (code, json.dumps(env))
    assert complaint in finding.message


def test_check_finds_an_environment_that_does_not_fit(
    tiny: dict[str, Any], to_yaml: Any, refused: Refused, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny["data"]["path"], tmp_path / "data")
    info = json.loads((data / "meta" / "info.json").read_text())
    (data / "meta" / "info.json").write_text(json.dumps({**info, "fps": 10}))
    for path in (data / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        times = pa.array(table["frame_index"].to_numpy() / 10, pa.float32())
        pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", times), path)
    tiny["data"] |= {"path": str(data), "columns": {"observation.images.corner2": None}}
    del tiny["policy"]["backbones"]["vision"]
    tiny["transforms"] = [{"type": "normalize"}]
    tiny["evaluation"] = {"env": "metaworld/reach-v3"}
    (finding,) = refused(Builder.from_recipe(to_yaml(tiny)).check)
    assert "trained at 10 frames per second, metaworld/reach-v3 takes 80" in finding.message
    assert finding.span.text == '"metaworld/reach-v3"'


def test_an_environment_is_described_as_it_is_made() -> None:
    name = environments()[0]
    environment = make(name, render=False)
    assert Scene.of(describe(name)) == Scene.of(environment)
    environment.close()
