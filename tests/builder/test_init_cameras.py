"""`policy.init.cameras`: a trained policy that goes on with the cameras of another robot."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.recipe.load import load_recipe
from policysmith.schemas.errors import RecipeError

from .data.synthetic import write_robot

SIZE = (40, 48)
RECIPE: dict[str, Any] = {
    "recipe": 1,
    "name": "base",
    "data": {"horizon": 4},
    "policy": {
        "backbones": {
            "vision": {"type": "conv", "channels": [4], "groups": 2, "width": 4},
            "proprio": {"type": "state"},
        },
        "head": {"type": "mlp", "reads": ["vision.pooled", "proprio.pooled"], "hidden": [8]},
    },
    "transforms": [{"type": "normalize_image"}, {"type": "normalize"}],
    "training": {"steps": 1, "batch_size": 4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy with the cameras `front` and `wrist`."""
    root = tmp_path_factory.mktemp("base")
    data = write_robot(root / "data", state=3, action=3, cameras={"front": SIZE, "wrist": SIZE})
    recipe = copy.deepcopy(RECIPE)
    recipe["data"]["path"] = str(data)
    Builder.from_recipe(recipe).build().save_pretrained(root / "policy")
    return root / "policy"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of the cameras `hand`, `top` and `back`."""
    cameras = {"hand": SIZE, "top": SIZE, "back": SIZE}
    return write_robot(tmp_path_factory.mktemp("mine") / "data", state=3, action=3, cameras=cameras)


@pytest.fixture
def recipe(base: Path, mine: Path) -> Callable[..., dict[str, Any]]:
    def make(cameras: Any, /, **data: Any) -> dict[str, Any]:
        recipe = copy.deepcopy(RECIPE)
        recipe["data"] |= {"path": str(mine), **data}
        recipe["policy"]["init"] = {"from": str(base), "cameras": cameras}
        return recipe

    return make


def test_the_policy_sees_each_camera_under_the_name_it_knows(
    recipe: Callable[..., dict[str, Any]], mine: Path
) -> None:
    builder = Builder.from_recipe(recipe({"front": "top", "wrist": "hand"}))
    policy = builder.build()
    assert not any("new, " in line for line in builder.notes)
    assert "  cameras: front is top, wrist is hand" in builder.notes
    assert policy.content["provenance"]["init"]["cameras"] == {"front": "top", "wrist": "hand"}
    sample = builder.initialization.data.open("training")[0]
    plain = copy.deepcopy(RECIPE)
    plain["data"]["path"] = str(mine)
    own = Builder.from_recipe(plain).initialization.data.open("training")[0]
    for base, name in {"front": "top", "wrist": "hand"}.items():
        assert torch.equal(sample[f"observation.images.{base}"], own[f"observation.images.{name}"])
    assert {key for key in sample if "images" in key} == {
        "observation.images.front",
        "observation.images.wrist",
    }


def test_names_can_be_swapped(recipe: Callable[..., dict[str, Any]], base: Path) -> None:
    given = recipe({"front": "wrist", "wrist": "front"}, path=str(base.parent / "data"))
    sample = Builder.from_recipe(given).initialization.data.open("training")[0]
    given["policy"]["init"] = str(base)
    own = Builder.from_recipe(given).initialization.data.open("training")[0]
    assert torch.equal(sample["observation.images.front"], own["observation.images.wrist"])
    assert torch.equal(sample["observation.images.wrist"], own["observation.images.front"])


def test_a_camera_that_the_robot_lacks_is_left_out(recipe: Callable[..., dict[str, Any]]) -> None:
    builder = Builder.from_recipe(recipe({"front": "top", "wrist": None}))
    builder.build()
    assert "  cameras: front is top, wrist left out" in builder.notes
    assert [key for key in builder.initialization.data.specs if "images" in key] == [
        "observation.images.front"
    ]


def test_a_resolved_recipe_means_the_same(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    loaded = load_recipe(recipe({"front": "top", "wrist": None}))
    assert loaded.resolved()["data"]["columns"] == {"observation.images.front": "observation.images.top"}
    path = tmp_path / "resolved.yaml"
    path.write_text(json.dumps(loaded.resolved()))
    assert load_recipe(path).resolved() == loaded.resolved()


@pytest.mark.parametrize(
    ("cameras", "data", "code", "message", "help"),
    [
        ({"fornt": "top", "wrist": None}, {}, "E024", "has no camera `fornt`", "did you mean `front`?"),
        ({"front": "top"}, {}, "E024", "also has the camera `wrist`", "`wrist: null`"),
        (
            {"front": "tpo", "wrist": None},
            {},
            "E023",
            "the dataset has no camera `tpo`",
            "did you mean `top`?",
        ),
        (
            {"front": "top", "wrist": "top"},
            {},
            "E007",
            "is given for `front` and for `wrist`",
            "once, or null",
        ),
        ({"front": None, "wrist": None}, {}, "E007", "no camera is left", "name a camera"),
        ({"front": "top", "wrist": None}, {"cameras": ["top"]}, "E007", "name other cameras", "remove"),
        (
            {"front": "top", "wrist": None},
            {"columns": {"observation.images.front": "observation.images.back"}},
            "E007",
            "two origins",
            "keep one",
        ),
        (
            {"front": "top", "wrist": None},
            {"path": None, "sources": {"one": {"path": "somewhere"}}},
            "E007",
            "is for one dataset",
            "of each source",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_its_place(
    cameras: Any,
    data: dict[str, Any],
    code: str,
    message: str,
    help: str,
    recipe: Callable[..., dict[str, Any]],
) -> None:
    given = recipe(cameras, **data)
    given["data"] = {key: value for key, value in given["data"].items() if value is not None}
    with pytest.raises(RecipeError) as caught:
        Builder.from_recipe(given).check()
    found = caught.value.diagnostics[0]
    assert found.code.startswith(code)
    assert message in found.message
    assert help in f"{found.help} {found.label}"
