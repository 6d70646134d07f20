"""Several datasets of one robot beside others: one name, one set of statistics, cameras that some lack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.schemas.diagnostics import Diagnostic

from .data.synthetic import FPS, write_robot

HEAD, WRIST = "observation.images.head", "observation.images.wrist"
Refused = Callable[..., tuple[Diagnostic, ...]]


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """A kitchen and a lab of one arm, the lab without a wrist camera, and a dog."""
    both = {"top": (32, 32), "wrist": (32, 32)}
    write_robot(tmp_path / "kitchen", state=3, action=2, cameras=both, shift=5.0)
    write_robot(tmp_path / "lab", state=3, action=2, cameras={"top": (32, 32)}, shift=1.0)
    write_robot(tmp_path / "dog", state=7, action=6, cameras=both)
    cameras = {"head": "top", "wrist": "wrist"}
    return {
        "recipe": 1,
        "name": "mixture",
        "data": {
            "sources": {
                "kitchen": {"path": str(tmp_path / "kitchen"), "robot": "arm", "cameras": cameras},
                "lab": {
                    "path": str(tmp_path / "lab"),
                    "robot": "arm",
                    "cameras": {**cameras, "wrist": None},
                    "episodes": [0, 2],
                },
                "dog": {"path": str(tmp_path / "dog"), "cameras": cameras},
            },
            "horizon": 4,
        },
        "policy": {
            "backbones": {
                "vision": {"type": "conv", "channels": [8, 8], "groups": 2, "width": 8},
                "proprio": {"type": "mlp", "hidden": [], "width": 8},
            },
            "head": {"type": "mlp", "hidden": [8]},
        },
        "transforms": [{"type": "normalize_image", "stats": "half"}, {"type": "normalize"}],
        "training": {"steps": 2, "batch_size": 8},
    }


def columns(path: Path, key: str, episodes: list[int] | None = None) -> np.ndarray[Any, Any]:
    """All values of a column of a dataset, by reading its samples one by one."""
    dataset = LeRobotDataset(
        path, cameras=(), observation_indices=(0,), action_indices=(0,), episodes=episodes
    )
    return np.concatenate([np.asarray(dataset[index][key]) for index in range(len(dataset))]).astype(float)


def test_statistics_of_a_robot_are_those_of_its_datasets_together(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    config = Builder.from_recipe(recipe).build().config
    assert list(config.robots) == ["arm", "dog"]
    for key in ("observation.state", "action"):
        own = [columns(tmp_path / "kitchen", key), columns(tmp_path / "lab", key, [0, 2])]
        together, held = np.concatenate(own), config.statistics["arm"][key]
        assert held["count"] == [len(together)]
        for name, expected in (
            ("mean", together.mean(0)),
            ("std", together.std(0)),
            ("min", together.min(0)),
            ("max", together.max(0)),
            ("q01", np.quantile(together, 0.01, axis=0)),
            ("q99", np.quantile(together, 0.99, axis=0)),
        ):
            np.testing.assert_allclose(held[name], expected, rtol=1e-6)
        assert not np.allclose(held["mean"], own[0].mean(0), rtol=0.01)


def test_images_of_a_camera_that_a_dataset_lacks_are_black(recipe: dict[str, Any]) -> None:
    dataset = Builder.from_recipe(recipe).datasets()[0]
    dog, kitchen = (length for length, _ in dataset.shares[:2])
    seen = {"dog": dataset[0], "kitchen": dataset[dog], "lab": dataset[dog + kitchen]}
    assert {name: bool(sample[WRIST].any()) for name, sample in seen.items()} == {
        "dog": True, "kitchen": True, "lab": False,
    }  # fmt: skip
    assert all(sample[HEAD].any() for sample in seen.values())
    assert seen["lab"][WRIST].shape == seen["lab"][HEAD].shape
    assert seen["lab"][WRIST].dtype == torch.uint8
    assert seen["lab"]["embodiment"] == seen["kitchen"]["embodiment"] != seen["dog"]["embodiment"]


def test_a_mixture_trains_and_acts_for_each_robot(recipe: dict[str, Any], tmp_path: Path) -> None:
    policy = Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu").policy
    image = torch.full((3, 32, 32), 90, dtype=torch.uint8)
    arm = {"embodiment": "arm", HEAD: image, WRIST: image, "observation.state": torch.ones(3)}
    assert policy.select_action(arm).shape == (2,)
    assert set(policy.content["provenance"]["datasets"]) == {"dog", "kitchen", "lab"}


def test_a_robot_without_the_camera_needs_none(recipe: dict[str, Any]) -> None:
    del recipe["data"]["sources"]["kitchen"]
    policy = Builder.from_recipe(recipe).build()
    image = torch.full((3, 32, 32), 90, dtype=torch.uint8)
    action = policy.select_action({"embodiment": "arm", HEAD: image, "observation.state": torch.ones(3)})
    assert action.shape == (2,)


def test_datasets_of_one_robot_agree(recipe: dict[str, Any], tmp_path: Path, refused: Refused) -> None:
    for name, options in {
        "wide": {"state": 4, "action": 2, "cameras": {"top": (32, 32)}},
        "fast": {"state": 3, "action": 2, "cameras": {"top": (32, 32)}, "fps": 3 * FPS},
        "large": {"state": 3, "action": 2, "cameras": {"top": (48, 32)}},
    }.items():
        write_robot(tmp_path / name, **options)
        change = {"data.sources.lab.path": str(tmp_path / name), "data.sources.lab.episodes": [0]}
        found = refused(Builder.from_recipe(recipe).override(change).check)[0]
        assert found.message == "`lab` and `kitchen` are of one robot, `arm`, but differ"
        assert found.span.path == "data.sources.lab.path"
        assert found.related[0][0].path == "data.sources.kitchen"


def test_a_camera_that_all_lack_is_refused(recipe: dict[str, Any], refused: Refused) -> None:
    for source in recipe["data"]["sources"].values():
        source["cameras"] = {"head": "top", "wrist": None}
    found = refused(Builder.from_recipe(recipe).check)
    assert {each.span.path for each in found} == {
        f"data.sources.{name}.cameras.wrist" for name in ("kitchen", "lab", "dog")
    }
    assert all(each.message.endswith("no dataset has camera `wrist`") for each in found)


def test_an_environment_is_of_a_robot_and_not_of_a_dataset(recipe: dict[str, Any], refused: Refused) -> None:
    recipe["evaluation"] = {"env": "metaworld/drawer-open-v3", "embodiment": "lab"}
    (found,) = refused(Builder.from_recipe(recipe).check)
    assert found.code == "E025 unknown-embodiment"
    assert found.help == "`data.sources` names `arm`, `dog`"
