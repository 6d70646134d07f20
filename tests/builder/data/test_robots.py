"""Samples of several robots in one form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.mixture import Mixture, RobotDataset
from policysmith.builder.data.robots import Robots
from policysmith.schemas.errors import SpecError
from policysmith.schemas.specs import Kind, Spec

from .synthetic import write_robot

STATE, IMAGE = "observation.state", "observation.images.front"


def specs(state: int, action: int, height: int, width: int) -> dict[str, Spec]:
    return {
        IMAGE: Spec(Kind.IMAGE, ("B", 2, 3, height, width)),
        STATE: Spec(Kind.STATE, ("B", 2, state)),
        "task": Spec(Kind.TEXT, ("B",)),
        "action": Spec(Kind.ACTION, ("B", 5, action)),
    }


OWN = {"dog": specs(6, 4, 16, 32), "arm": specs(3, 7, 32, 32)}
COMMON = {
    **specs(6, 7, 32, 32),
    "observation.force": Spec(Kind.STATE, ("B", 2, 2)),
    "embodiment": Spec(Kind.EMBODIMENT, ("B",), vocab=2),
}
OWN["arm"]["observation.force"] = Spec(Kind.STATE, ("B", 2, 2))
ROBOTS = Robots(OWN, COMMON)


@pytest.fixture
def opened(tmp_path: Path) -> Mixture:
    parts = {}
    for name, state, action, camera, size in (
        ("arm", 3, 7, "top", (32, 32)),
        ("dog", 6, 4, "front", (16, 32)),
    ):
        force = 2 if name == "arm" else 0
        write_robot(tmp_path / name, state=state, action=action, cameras={camera: size}, force=force)
        dataset = LeRobotDataset(
            tmp_path / name, observation_indices=(-1, 0), action_indices=range(5), episodes=[0, 2]
        )
        parts[name] = RobotDataset(dataset, ROBOTS.find(name), {"front": camera})
    return Mixture(parts, [1.0, 3.0])


def test_samples_of_all_robots_stack(opened: Mixture) -> None:
    assert len(opened) == 2 * (12 + 15)
    assert opened.shares == ((27, 1.0), (27, 3.0))
    samples = [opened[index] for index in range(len(opened))]
    for key in (
        IMAGE,
        STATE,
        "observation.force",
        "action",
        "embodiment",
        "action_dim_is_pad",
        "action_is_pad",
    ):
        stacked = torch.stack([sample[key] for sample in samples])
        if key in COMMON:
            assert stacked.shape[1:] == torch.Size(COMMON[key].dims[1:])  # type: ignore[arg-type]
    assert [int(sample["embodiment"]) for sample in samples] == [0] * 27 + [1] * 27
    assert {sample[IMAGE].dtype for sample in samples} == {torch.uint8}


def test_a_sample_is_the_dataset_s_own_and_zeros(opened: Mixture) -> None:
    for which, index in ((0, 4), (1, 4 + 27)):
        part, sample = opened.parts[which], opened[index]
        own = part.source[4]
        for key in (STATE, "action"):
            width = own[key].shape[-1]
            assert torch.equal(sample[key][..., :width], own[key])
            assert not sample[key][..., width:].any()
        assert sample["action_dim_is_pad"].tolist() == [d >= own["action"].shape[-1] for d in range(7)]
        assert sample["task"] == own["task"]
    assert not opened[30]["observation.force"].any()
    assert torch.equal(opened[4][IMAGE], opened.parts[0].source[4]["observation.images.top"])
    assert opened[31][IMAGE].shape == (2, 3, 32, 32)
    assert opened[-1]["index"] == opened[len(opened) - 1]["index"]
    with pytest.raises(IndexError, match="sample 54 of 54"):
        opened[54]


def test_the_fingerprint_tells_names_and_datasets_apart(opened: Mixture) -> None:
    assert opened.fingerprints == {part.robot.name: part.source.fingerprint for part in opened.parts}
    arm, dog = opened.parts
    others = [RobotDataset(one.source, other.robot, {}) for one, other in ((arm, dog), (dog, arm))]
    mixtures = [
        opened,
        Mixture({"dog": others[0], "arm": others[1]}, [1, 1]),
        Mixture({"arm": others[0], "dog": others[1]}, [1, 1]),
        Mixture({"arm": arm}, [1]),
    ]
    assert len({mixture.fingerprint for mixture in mixtures}) == len(mixtures)


def test_numbers_are_those_of_the_sorted_names() -> None:
    assert ROBOTS.names == ("arm", "dog")
    assert ROBOTS.action_padding(torch.tensor([1, 0])).tolist() == [[False] * 4 + [True] * 3, [False] * 7]
    assert Robots.from_json(ROBOTS.to_json(), COMMON).find("dog") == ROBOTS.find("dog")
    assert not Robots.from_json(None, COMMON)
    assert Robots({}, COMMON).to_json() is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, r"`embodiment` is missing.*name one of `arm`, `dog`"),
        ("arn", r"no robot 'arn'.*did you mean `arm`\? it has `arm`, `dog`"),
        ("cat", r"no robot 'cat' \(it has `arm`, `dog`\)"),
        (1, r"no robot 1 \(it has"),
    ],
)
def test_a_robot_that_is_not_known(name: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ROBOTS.find(name)
