"""The LeRobot plug-in, against a stub of LeRobot: what its commands would call computes what the policy computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from policysmith.schemas.errors import SpecError

from .lerobot_stub import modules, unload

ROOT = Path(__file__).parents[2]
DATASET = ROOT / "recipes" / "datasets" / "drawer_open"
CAMERA = "observation.images.corner2"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "plugins" / "lerobot_policy_policysmith")
    unload()
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    import lerobot_policy_policysmith

    yield lerobot_policy_policysmith
    unload()


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> Path:
    tiny["data"] |= {"path": "nowhere", "observation_steps": 2}
    with (tmp_path / "recipe.yaml").open("w") as stream:
        YAML().dump(tiny, stream)
    return tmp_path / "recipe.yaml"


def new(plugin: ModuleType, recipe: Path) -> Any:
    torch.manual_seed(0)
    config = plugin.PolicysmithConfig(recipe=str(recipe), device="cpu")
    return plugin.PolicysmithPolicy(config, dataset_meta=SimpleNamespace(root=DATASET)).eval()


def batch(size: int = 3, steps: int = 2) -> dict[str, Any]:
    """Return a batch as LeRobot's dataset and processors make it: images in floats."""
    random = torch.Generator().manual_seed(1)
    return {
        CAMERA: torch.randint(256, (size, steps, 3, 96, 96), generator=random) / 255,
        "observation.state": torch.rand(size, steps, 4, generator=random) * 0.2,
        "action": torch.rand(size, 4, 4, generator=random),
        "action_is_pad": torch.zeros(size, 4, dtype=torch.bool),
        "task": ["open the drawer"] * size,
        "index": torch.arange(size),
    }


def test_sizes_and_presets_are_those_of_the_recipe(plugin: ModuleType, recipe: Path) -> None:
    config = plugin.PolicysmithConfig(recipe=str(recipe))
    assert (config.n_obs_steps, config.chunk_size, config.n_action_steps) == (2, 4, 2)
    assert config.observation_delta_indices == [-1, 0]
    assert config.action_delta_indices == [0, 1, 2, 3]
    assert config.get_optimizer_preset().options["lr"] == config.resolved["training"]["optimizer"]["lr"]
    assert plugin.PolicysmithConfig().chunk_size == 1, "LeRobot constructs every config from its defaults"


def test_the_loss_is_that_of_the_policy(plugin: ModuleType, recipe: Path) -> None:
    policy, given = new(plugin, recipe), batch()
    kept = copy.deepcopy(given)
    loss, terms = policy(given)
    own = {**given, CAMERA: (given[CAMERA] * 255).round().to(torch.uint8)}
    expected = policy.model({key: own[key] for key in own if key not in ("index", "task")})["loss"]
    assert loss == expected
    assert terms["loss"] == pytest.approx(float(loss.detach()))
    loss.backward()
    assert any(parameter.grad is not None for parameter in policy.get_optim_params())
    assert all(torch.equal(given[key], kept[key]) for key in kept if key != "task"), "the batch was changed"


def test_a_saved_policy_needs_no_recipe_and_acts_alike(
    plugin: ModuleType, recipe: Path, tmp_path: Path
) -> None:
    policy = new(plugin, recipe)
    policy.save_pretrained(tmp_path / "saved")
    recipe.unlink()
    loaded = plugin.PolicysmithPolicy.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.predict_action_chunk(batch()), policy.predict_action_chunk(batch()))
    assert (loaded.config.chunk_size, loaded.config.n_obs_steps) == (4, 2)


def test_every_environment_acts_as_if_alone(plugin: ModuleType, recipe: Path) -> None:
    """Each row of a batch is driven as `select_action` of the policy drives one robot, over chunks and history."""
    policy = new(plugin, recipe)
    alone = [copy.deepcopy(policy.model) for _ in range(2)]
    given = [
        {k: v[:, step] for k, v in batch(2, 5).items() if k.startswith("observation")} for step in range(5)
    ]
    for _ in range(2):
        policy.reset()
        for each in alone:
            each.reset()
        for step in given:
            found = policy.select_action({**step, "task": ["a", "b"]})
            for row, each in enumerate(alone):
                image = (step[CAMERA][row] * 255).round().to(torch.uint8)
                state = step["observation.state"][row]
                expected = each.select_action({CAMERA: image, "observation.state": state})
                torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


def test_larger_images_are_resized_and_others_refused(plugin: ModuleType, recipe: Path) -> None:
    policy = new(plugin, recipe)
    given = {key: value[:, 0] for key, value in batch(1).items() if key.startswith("observation")}
    policy.select_action({**given, CAMERA: torch.zeros(1, 3, 480, 480)})
    policy.reset()
    with pytest.raises(SpecError, match="another aspect ratio"):
        policy.select_action({**given, CAMERA: torch.zeros(1, 3, 480, 640)})
    with pytest.raises(
        ValueError, match=r"reads `observation.images.corner2`, and the batch has .*--rename_map"
    ):
        policy.select_action({"observation.state": given["observation.state"]})


def test_what_cannot_be_built_is_named(plugin: ModuleType, recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"--policy.recipe=FILE.yaml"):
        _ = plugin.PolicysmithConfig().resolved
    with pytest.raises(ValueError, match=r"--policy.path=DIR"):
        plugin.PolicysmithPolicy(plugin.PolicysmithConfig(recipe=str(recipe)))
    recipe.write_text(
        recipe.read_text().replace("path: nowhere", "path: nowhere\n  columns: {action: actions}")
    )
    with pytest.raises(ValueError, match=r"sets `data.columns`"):
        plugin.PolicysmithConfig(recipe=str(recipe))


def test_the_plugin_imports_nothing_of_policysmith_at_its_start(plugin: ModuleType) -> None:
    """LeRobot imports every plug-in at its start; one that fails or is slow would burden all its commands."""
    source = (ROOT / "plugins/lerobot_policy_policysmith/lerobot_policy_policysmith").glob("[!_]*.py")
    for path in source:
        top = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not any("policysmith" in line and "from ." not in line for line in top), path
