"""Evaluations in worker processes, and everything that is refused before one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import pytest

from policysmith.builder.evaluation import evaluate_closed_loop
from policysmith.builder.evaluation.rollout import Episode
from policysmith.builder.evaluation.video import HOLD
from policysmith.builder.planning.checks.compatibility import Needs, Scene, check_scene, needs_of
from policysmith.builder.saved_policy import SavedPolicy
from policysmith.builder.simulation.seeds import evaluation_seed
from policysmith.schemas.errors import CheckpointError, SimulatorError, SpecError

from .reach import make_reach, make_three_joints

SavePolicy = Callable[..., Path]
PLANE = Scene("plane/reach", ("top",), 4, 2, 40, 30, "Reach the goal")


def test_results_do_not_depend_on_the_number_of_processes(save_policy: SavePolicy, tmp_path: Path) -> None:
    directory = save_policy("expert", noise=2.0, execute=2)
    seen: list[Episode] = []
    results = [
        evaluate_closed_loop(
            directory,
            env=make_reach,
            episodes=8,
            seed=5,
            processes=processes,
            allow_imports=True,
            video=video,
            strip=video.with_suffix(".png") if video is not None else None,
            watch=seen.append,
        )
        for processes, video in ((1, tmp_path / "film.mp4"), (2, None))
    ]
    assert results[0].episodes == results[1].episodes
    assert [episode.seed for episode in results[0].episodes] == [evaluation_seed(5, i) for i in range(8)]
    assert sorted(seen[:8], key=lambda one: one.index) == list(results[0].episodes)
    assert len({episode.steps for episode in results[0].episodes}) > 1
    assert results[0].successes == sum(episode.success for episode in results[1].episodes)
    filmed = max(episode.steps for episode in results[0].episodes[:6]) + 1
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == filmed + HOLD
    assert (tmp_path / "film.png").exists()
    assert results[0].to_json()["n"] == 8


def test_a_policy_that_does_not_fit_is_refused_before_any_rollout(save_policy: SavePolicy) -> None:
    seen: list[Episode] = []
    with pytest.raises(SpecError, match="`top`, plane/three-joints has `wrist`") as caught:
        evaluate_closed_loop(
            save_policy("expert"),
            env=make_three_joints,
            episodes=2,
            processes=1,
            allow_imports=True,
            watch=seen.append,
        )
    assert not seen
    assert "a state of 4 values, plane/three-joints has 6" in caught.value.message
    assert "actions of 2 values, plane/three-joints takes 3" in caught.value.message
    assert "policysmith data record --env plane/three-joints" in caught.value.help


def test_what_fits_passes_and_other_observations_do_not() -> None:
    check_scene(Needs({"top": (16, 16)}, {"observation.state": 4}, 2), PLANE)
    check_scene(Needs({}, {}, 2), PLANE)
    with pytest.raises(SpecError, match=r"reads `observation.force`, plane/reach has only"):
        check_scene(Needs({}, {"observation.force": 6}, 2), PLANE)


def test_simulators_draw_squares() -> None:
    assert Needs({"top": (32, 32)}, {}, 2).image_size == 32
    assert Needs({}, {}, 2).image_size is None
    with pytest.raises(SpecError, match="square images of one size, but the policy reads `top` 48 x 64"):
        _ = Needs({"top": (48, 64)}, {}, 2).image_size


def test_needs_of_a_hand_written_policy_are_all_it_was_trained_with(save_policy: SavePolicy) -> None:
    needs = needs_of(SavedPolicy.find(save_policy("expert", side=24)))
    assert needs == Needs({"top": (24, 24)}, {"observation.state": 4}, 2)
    assert needs.keys == {"observation.images.top", "observation.state", "task"}


def test_code_runs_only_when_it_is_allowed_to(save_policy: SavePolicy) -> None:
    with pytest.raises(CheckpointError, match=r"scripted\.py`.*--allow-imports"):
        evaluate_closed_loop(save_policy("expert"), env=make_reach, episodes=1)


def test_an_unknown_environment_is_told_at_once(save_policy: SavePolicy) -> None:
    with pytest.raises(SimulatorError, match="did you mean `metaworld/drawer-open-v3`"):
        evaluate_closed_loop(
            save_policy("expert"), env="metaworld/drawer-opn-v3", episodes=1, allow_imports=True
        )


def test_what_is_no_policy_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        SavedPolicy.find(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a run"):
        SavedPolicy.find(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="`bert` that was not made from a recipe"):
        SavedPolicy.find(tmp_path)
