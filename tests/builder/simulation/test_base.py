"""Names of environments, and what happens to names that are wrong."""

from __future__ import annotations

import pytest

from policysmith.builder.simulation.base import environments, make
from policysmith.builder.simulation.seeds import demonstration_seed, evaluation_seed
from policysmith.schemas.errors import SimulatorError

from .processes import run_alone


def test_all_fifty_tasks_are_listed() -> None:
    names = environments()
    assert len(names) == 50
    assert {"metaworld/drawer-open-v3", "metaworld/push-v3", "metaworld/door-open-v3"} <= set(names)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("metaworld/drawer-open-v2", "metaworld/drawer-open-v3"),
        ("metaworld/draweropen", "metaworld/drawer-open-v3"),
        ("metawrld/push-v3", "metaworld/push-v3"),
        ("push-v3", "metaworld/push-v3"),
    ],
)
def test_a_near_miss_is_corrected(name: str, suggestion: str) -> None:
    with pytest.raises(SimulatorError, match="Did you mean") as caught:
        make(name)
    assert f"`{suggestion}`" in str(caught.value)


@pytest.mark.parametrize("name", ["metaworld/xyzzy", "libero/nothing-alike", "", "/"])
def test_a_name_like_no_other_lists_all(name: str) -> None:
    with pytest.raises(SimulatorError, match="Known: metaworld/assembly-v3, ") as caught:
        make(name)
    assert "metaworld/window-open-v3" in str(caught.value)


def test_demonstrations_and_evaluations_never_share_a_seed() -> None:
    demonstrations = {demonstration_seed(seed, index) for seed in range(5) for index in range(500)}
    evaluations = {evaluation_seed(seed, index) for seed in range(5) for index in range(500)}
    assert len(demonstrations) == len(evaluations) == 2500
    assert not demonstrations & evaluations


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (0, 1_000_000)])
def test_seeds_out_of_range_are_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="a seed is 0 or more"):
        evaluation_seed(seed, index)


def test_nothing_heavy_is_imported_before_an_environment_is_opened() -> None:
    code = """
import sys
import policysmith.builder.simulation.metaworld, policysmith.builder.data.writing.record
print(sorted({"torch", "mujoco", "metaworld", "gymnasium", "OpenGL"} & set(sys.modules)))
"""
    assert run_alone(code).stdout.strip() == "[]"
