"""A config that is changed at random loads, or is refused by the project's own error, at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.policy import RecipeConfig
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.schemas.errors import PolicysmithError

from .mutations import at_most, bytes_changed, changed


@pytest.fixture(scope="module")
def saved(make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "policy"
    Builder.from_recipe(make_tiny()).build().save_pretrained(directory)
    (directory / "manifest.json").unlink()  # it would refuse all of them
    return directory


@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 60), pytest.param(1000, 2000, marks=(pytest.mark.slow, pytest.mark.timeout(7200)))],
)
def test_a_changed_config_loads_or_is_refused(first: int, count: int, saved: Path) -> None:
    path = saved / "config.json"
    before = path.read_text()
    config = json.loads(before)
    refused = 0
    try:
        for seed in range(first, first + count):
            random = Random(seed)
            if random.random() < 0.2:
                path.write_bytes(bytes_changed(before.encode(), random))
            else:
                path.write_text(json.dumps(changed(config, random)))
            refused += sum([stumbles(seed, load, saved) for load in loaders(saved)])
    finally:
        path.write_text(before)
    assert refused > count // 3


def loaders(directory: Path) -> list[Callable[[Path], object]]:
    """Load a policy. `AutoModel` reads the config itself before it comes to us, and stumbles in its own way."""
    found: list[Callable[[Path], object]] = [
        lambda directory: SavedPolicy.find(directory).load(),
        RecipePolicy.from_pretrained,
    ]
    try:
        config: Any = AutoConfig.from_pretrained(directory)
    except PolicysmithError:
        return [*found, AutoModel.from_pretrained]
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        return found
    return [*found, AutoModel.from_pretrained] if isinstance(config, RecipeConfig) else found


def stumbles(seed: int, load: Callable[[Path], object], directory: Path) -> bool:
    try:
        with at_most(5):
            load(directory)
    except PolicysmithError:
        return True
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
    return False
