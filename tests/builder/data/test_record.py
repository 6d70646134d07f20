"""Recording: what is kept and what is stored, on a toy environment and on Meta-World itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from policysmith.builder.data.writing import record as recording
from policysmith.builder.data.writing.record import TAIL, attempt, record
from policysmith.builder.simulation.base import Demonstrator, StepResult, make
from policysmith.schemas.arguments import policysmith
from policysmith.schemas.errors import DatasetError, SimulatorError

DRAWER = "metaworld/drawer-open-v3"
BUNDLED = Path(__file__).parents[3] / "recipes/datasets/drawer_open"


class Toy:
    """Succeeds on its fourth step, unless the try's number is one of `failing`; wants an action beyond 1."""

    name, task, robot_type = "toy/reach", "Reach", "toy"
    cameras, fps, max_steps = ("front",), 10, 20
    state_names, action_names = ("x",), ("dx", "dy")
    state_dim, action_dim = 1, 2

    def __init__(self, failing: set[int]) -> None:
        self.failing, self.executed, self.seeds, self.closed = failing, [], [], False

    def reset(self, seed: int) -> dict[str, Any]:
        self.seeds.append(seed)
        self.steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> StepResult:
        self.steps += 1
        self.executed.append(action)
        success = self.steps == 4 and len(self.seeds) - 1 not in self.failing
        return StepResult(self._observe(), success, self.steps == self.max_steps)

    def expert_action(self) -> np.ndarray:
        return np.array([1.0, 0.25], dtype=np.float32)

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), 7 * self.steps, dtype=np.uint8)

    def layout(self) -> np.ndarray:
        return np.zeros(1)

    def provenance(self) -> dict[str, Any]:
        return {"versions": {"toy": "1"}, "renderer": {"library": "none"}}

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> dict[str, Any]:
        image = self.render().transpose(2, 0, 1)
        state = np.array([self.steps], dtype=np.float32)
        return {"observation.images.front": image, "observation.state": state, "task": self.task}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    environment = Toy(failing=set())
    monkeypatch.setattr(recording, "make", lambda name, image_size: environment)
    return environment


def rows(root: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(root / "data/chunk-000/file-000.parquet").to_pydict()
    return {key: np.array(values) for key, values in table.items()}


def facts(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "meta/recording.json").read_text())
    return content


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_toy_is_a_demonstrator(toy: Toy) -> None:
    assert isinstance(toy, Demonstrator)


def test_a_few_steps_follow_success(toy: Toy, tmp_path: Path) -> None:
    summary = record("toy/reach", 2, tmp_path / "set", image_size=16)
    frames = rows(tmp_path / "set")
    assert frames["frame_index"].tolist() == [*range(4 + TAIL)] * 2
    np.testing.assert_array_equal(frames["observation.state"][:, 0], frames["frame_index"])
    assert (summary.kept, summary.tried, summary.frames) == (2, 2, 2 * (4 + TAIL))
    assert "2 episodes from 2 attempts" in str(summary)
    assert summary.bytes == sum(
        path.stat().st_size for path in (tmp_path / "set").rglob("*") if path.is_file()
    )
    assert toy.closed


def test_failures_are_thrown_away_and_named(toy: Toy, tmp_path: Path) -> None:
    toy.failing = {0, 2}
    summary = record("toy/reach", 3, tmp_path / "set", image_size=16, seed=4)
    assert (summary.kept, summary.tried) == (3, 5)
    told = facts(tmp_path / "set")
    assert told["discarded_seeds"] == [toy.seeds[0], toy.seeds[2]]
    assert told["episode_seeds"] == [toy.seeds[1], toy.seeds[3], toy.seeds[4]]
    assert all(seed % 2 for seed in toy.seeds)
    assert set(rows(tmp_path / "set")["episode_index"]) == {0, 1, 2}


def test_noise_disturbs_what_is_done_not_what_is_stored(toy: Toy, tmp_path: Path) -> None:
    record("toy/reach", 2, tmp_path / "set", image_size=16, noise=0.3)
    stored = rows(tmp_path / "set")["action"]
    executed = np.array(toy.executed)
    np.testing.assert_array_equal(stored, np.tile([1.0, 0.25], (len(stored), 1)))
    assert np.abs(executed).max() <= 1.0
    assert 0.15 < executed[:, 1].std() < 0.45
    assert executed.dtype == np.float32


def test_without_noise_what_is_stored_is_done(toy: Toy, tmp_path: Path) -> None:
    record("toy/reach", 1, tmp_path / "set", image_size=16)
    np.testing.assert_array_equal(rows(tmp_path / "set")["action"], toy.executed)


def test_a_hopeless_expert_is_refused_and_leaves_nothing(toy: Toy, tmp_path: Path) -> None:
    toy.failing = set(range(100))
    with pytest.raises(SimulatorError, match=r"failed 10 of 10 attempts with noise 2.0; lower the noise"):
        record("toy/reach", 3, tmp_path / "set", image_size=16, noise=2.0)
    assert toy.closed
    assert not (tmp_path / "set").exists()


def test_an_environment_without_expert_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Silent:
        def close(self) -> None: ...

    monkeypatch.setattr(recording, "make", lambda name, image_size: Silent())
    with pytest.raises(SimulatorError, match="no scripted expert"):
        record("toy/reach", 1, tmp_path / "set")


def test_a_full_folder_is_refused_before_anything_runs(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        record("toy/reach", 1, tmp_path)
    assert toy.seeds == []


@pytest.mark.parametrize(
    "wrong", [{"episodes": 0}, {"workers": 0}, {"seed": -1}, {"noise": -1.0}, {"noise": float("nan")}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match="at least 1"):
        record(**({"env_name": DRAWER, "episodes": 1, "output": tmp_path / "set"} | wrong))


def test_an_unknown_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match="did you mean `metaworld/drawer-open-v3`"):
        record("metaworld/drawer-opn-v3", 1, tmp_path / "set")


def test_the_stored_command_records_the_same_again(toy: Toy, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    options: dict[str, Any] = {"image_size": 16, "seed": 3, "noise": 0.1}
    record(
        "toy/reach", 2, tmp_path / "first", **options, progress=lambda kept, of: reported.append((kept, of))
    )
    assert reported == [(1, 2), (2, 2)]
    command = facts(tmp_path / "first")["command"]
    args = policysmith().parse_args(command.split()[1:])
    again = {key: getattr(args, key) for key in ("image_size", "seed", "noise")}
    assert (args.env, args.episodes, args.output, again) == ("toy/reach", 2, "DIR", options)
    toy.seeds.clear()
    record(args.env, args.episodes, tmp_path / "second", **again)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_a_pool_of_workers_records_the_same(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_thread(workers: int, mp_context: Any, **options: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, **options)  # stands in for spawned processes

    toy.failing = {1}
    record("toy/reach", 3, tmp_path / "alone", image_size=16, seed=2, noise=0.2)
    toy.seeds.clear()
    monkeypatch.setattr(recording, "ProcessPoolExecutor", one_thread)
    record("toy/reach", 3, tmp_path / "shared", image_size=16, seed=2, noise=0.2, workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


@pytest.mark.sim
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_meta_world_recordings_are_equal_for_equal_seeds_and_any_number_of_workers(
    tmp_path: Path, workers: int
) -> None:
    record("metaworld/reach-v3", 2, tmp_path / "alone", image_size=32, seed=2, noise=0.2)
    record("metaworld/reach-v3", 2, tmp_path / "shared", image_size=32, seed=2, noise=0.2, workers=workers)
    alone, shared = (contents(tmp_path / name) for name in ("alone", "shared"))
    assert alone.keys() == shared.keys()
    assert [name for name, content in alone.items() if content != shared[name]] == []
    told = facts(tmp_path / "alone")
    assert told["versions"].keys() == {"policysmith", "metaworld", "mujoco"}
    assert told["renderer"]["library"] == "egl"
    assert len(told["episode_seeds"]) == 2
    actions = rows(tmp_path / "alone")["action"]
    assert not np.array_equal(actions[:20], actions[-20:])


@pytest.mark.sim
def test_stored_actions_succeed_again_in_the_bundled_set() -> None:
    frames, told = rows(BUNDLED), facts(BUNDLED)
    assert np.abs(frames["action"]).max() <= 1.0
    video = BUNDLED / "videos/observation.images.corner2/chunk-000/file-000.mp4"
    with closing(make(DRAWER, image_size=96)) as environment, av.open(str(video)) as container:
        pictures = container.decode(video=0)
        for index in range(1):
            chosen = frames["episode_index"] == index
            observation = environment.reset(told["episode_seeds"][index])
            succeeded = []
            for action, state in zip(
                frames["action"][chosen], frames["observation.state"][chosen], strict=True
            ):
                np.testing.assert_allclose(observation["observation.state"], state, atol=1e-6)
                picture = next(pictures).to_ndarray(format="rgb24").transpose(2, 0, 1)
                difference = np.abs(picture.astype(int) - observation["observation.images.corner2"])
                assert difference.mean() < 8, "the stored image belongs to another moment or renderer"
                result = environment.step(action.astype(np.float32))
                observation = result.observation
                succeeded.append(result.success)
            assert succeeded.index(True) == len(succeeded) - TAIL - 1


@pytest.mark.sim
def test_an_attempt_gives_up_at_the_step_limit() -> None:
    with closing(make(DRAWER, image_size=16)) as environment:
        assert isinstance(environment, Demonstrator)
        environment.max_steps = environment._env.max_path_length = 30
        assert attempt(environment, 1, 0.0).frames is None


def test_the_bundled_set_is_what_its_recording_says() -> None:
    info, told = json.loads((BUNDLED / "meta/info.json").read_text()), facts(BUNDLED)
    assert info["total_episodes"] == len(told["episode_seeds"]) == len(set(told["episode_seeds"])) == 50
    assert told["environment"] == DRAWER
    assert info["features"]["observation.images.corner2"]["shape"] == [96, 96, 3]
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) < 5e6
