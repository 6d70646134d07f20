"""Names of environments, and what happens to names that are wrong."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace

import pytest

from policysmith.builder.simulation import base
from policysmith.builder.simulation.base import GROUP, describe, environments, make
from policysmith.builder.simulation.seeds import demonstration_seed, evaluation_seed
from policysmith.schemas.errors import SimulatorError

from ..evaluation.reach import ReachEnvironment
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
    with pytest.raises(SimulatorError, match="did you mean") as caught:
        make(name)
    assert f"`{suggestion}`" in str(caught.value)


@pytest.mark.parametrize("name", ["metaworld/xyzzy", "libero/nothing-alike", "", "/"])
def test_a_name_like_no_other_lists_all(name: str) -> None:
    with pytest.raises(SimulatorError, match="known: metaworld/assembly-v3, ") as caught:
        make(name)
    assert "metaworld/window-open-v3" in str(caught.value)


class ShelfEnvironment(ReachEnvironment):
    name = "shop/shelf"


SHOP = SimpleNamespace(
    environments=lambda: ("shelf",),
    make=lambda name, *, image_size, render: ShelfEnvironment(image_size, render),
    describe=lambda name: ShelfEnvironment,
)


def install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(base, "entry_points", lambda group: EntryPoints(points).select(group=group))


def test_another_package_provides_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shop_simulator", SHOP)
    install(monkeypatch, EntryPoint("shop", "shop_simulator", GROUP))
    assert "shop/shelf" in environments()
    environment = make("shop/shelf", image_size=8)
    assert environment.reset(0)["observation.images.top"].shape == (3, 8, 8)
    assert describe("shop/shelf").max_steps == 30
    with pytest.raises(SimulatorError, match="did you mean `shop/shelf`"):
        make("shop/shelv")


def test_a_suite_that_is_taken_or_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EntryPoint("metaworld", "mine", GROUP), EntryPoint("shop", "no_such_module", GROUP))
    with pytest.raises(SimulatorError, match=r"`metaworld` is provided by policysmith and mine"):
        make("metaworld/push-v3")
    with pytest.raises(SimulatorError, match=r"`shop` \(no_such_module\) cannot be imported"):
        make("shop/shelf")
    assert environments() == ()


def test_demonstrations_and_evaluations_never_share_a_seed() -> None:
    demonstrations = {demonstration_seed(seed, index) for seed in range(5) for index in range(500)}
    evaluations = {evaluation_seed(seed, index) for seed in range(5) for index in range(500)}
    assert len(demonstrations) == len(evaluations) == 2500
    assert not demonstrations & evaluations


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (0, 1_000_000)])
def test_seeds_out_of_range_are_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="seeds must be at least 0"):
        evaluation_seed(seed, index)


def test_nothing_heavy_is_imported_before_an_environment_is_opened() -> None:
    code = """
import sys
import policysmith.builder.simulation.metaworld, policysmith.builder.data.writing.record
print(sorted({"torch", "mujoco", "metaworld", "gymnasium", "OpenGL"} & set(sys.modules)))
"""
    assert run_alone(code).stdout.strip() == "[]"
