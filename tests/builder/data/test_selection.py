"""Episodes chosen by conditions, idle starts left out, damaged episodes skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.frames.choice import FrameChoice
from policysmith.builder.data.lerobot.layout import read_layout
from policysmith.builder.data.lerobot.table import read_table
from policysmith.builder.data.motion import idle_start
from policysmith.builder.data.selection import matching, without_idle_starts
from policysmith.builder.data.writing.writer import LeRobotWriter
from policysmith.builder.evaluation.evaluate import evaluate
from policysmith.schemas.errors import DatasetError, RecipeError

from .synthetic import FPS, VERSIONS, read_code, rewrite_parquet, write_dataset

LENGTHS = (7, 5, 9, 3, 6)


def add_success(root: Path, version: str) -> None:
    """Add a column of the episode table, and one of the frames."""
    if version == "v3.0":
        for path in root.glob("meta/episodes/*/*.parquet"):
            table = pq.read_table(path)
            numbers = table["episode_index"].to_pylist()
            table = table.append_column("success", pa.array([number != 2 for number in numbers]))
            pq.write_table(table.append_column("operator", pa.array([f"op{n % 2}" for n in numbers])), path)
    else:
        path = root / "meta/episodes.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row |= {"success": row["episode_index"] != 2, "operator": f"op{row['episode_index'] % 2}"}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"success": True}, (0, 1, 3, 4)),
        ({"success": False}, (2,)),
        ({"length": [5, None]}, (0, 1, 2, 4)),
        ({"length": [4, 6]}, (1, 4)),
        ({"length": 3}, (3,)),
        ({"operator": "op1"}, (1, 3)),
        ({"operator": ["op0", "opx"], "success": True}, (0, 4)),
        ({"task": "open *"}, (1, 2, 3)),
        ({"observation.touch": True}, (0, 2, 3)),
    ],
)
def test_episodes_that_fulfill_all_conditions(
    tmp_path: Path, version: str, where: dict[str, Any], expected: tuple[int, ...]
) -> None:
    data = write_dataset(tmp_path / "set", version)
    add_success(data.root, version)
    found = matching(read_layout(data.root), where, range(5))
    if "observation.touch" in where:
        last = np.cumsum(LENGTHS) - 1
        expected = tuple(np.flatnonzero(last % 3 == 0).tolist())
    assert found == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"succes": True}, r"no column `succes`.*did you mean `success`"),
        (
            {"length": [90, None]},
            r"no episode of .* has `length: \[90, None\]`; the values are 7, 5, 9, 3, 6",
        ),
    ],
)
def test_conditions_that_cannot_be_met_are_said(tmp_path: Path, where: dict[str, Any], message: str) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    add_success(root, "v3.0")
    with pytest.raises(DatasetError, match=message):
        matching(read_layout(root), where, range(5))


def write_idle(root: Path) -> Path:
    with LeRobotWriter(
        root, fps=FPS, cameras={"top": (32, 64)}, vectors={"action": ["x"], "observation.state": ["x"]}
    ) as writer:
        for idle in (4, 0, 7):
            moving = np.linspace(0.0, 1.0, 12, dtype=np.float32)
            x = np.concatenate([np.zeros(idle, np.float32), moving])[:, None]
            images = (
                np.zeros((len(x), 3, 32, 64), np.uint8)
                + np.arange(len(x), dtype=np.uint8)[:, None, None, None] * 10
            )
            writer.add_episode("go", {"action": x, "observation.state": x, "observation.images.top": images})
    return root


@pytest.mark.parametrize("form", ["raw", "stream"])
def test_idle_starts_are_left_out_of_rows_frames_and_numbers(tmp_path: Path, form: Any) -> None:
    root = write_idle(tmp_path / "set")
    choice = FrameChoice(form)
    whole, trimmed = LeRobotDataset(root, frames=choice), LeRobotDataset(root, frames=choice, trim=True)
    assert without_idle_starts(read_layout(root)).skipped == {0: 4, 2: 7}
    assert trimmed.episode_lengths == (12, 12, 12)
    layout = without_idle_starts(read_layout(root))
    table = read_table(layout, layout.choose_episodes(None), ())
    assert [table.locate(row) for row in (0, 11, 12, 24)] == [(0, 4), (0, 15), (1, 0), (2, 7)]
    assert whole.fingerprint != trimmed.fingerprint
    kept = [*range(4, 16), *range(16, 28), *range(35, 47)]
    for place, index in enumerate(kept):
        one, other = trimmed[place], whole[index]
        assert all(torch.equal(one[key], other[key]) for key in one if key not in ("task", "action_is_pad"))


@pytest.mark.parametrize(
    ("actions", "steps"), [([0, 0, 1, 1], 1), ([0, 1, 1, 1], 0), ([0, 0, 0, 0], 3), ([5], 0)]
)
def test_an_idle_start_ends_with_the_first_change(actions: list[float], steps: int) -> None:
    """An episode in which nothing moves is idle to its last frame."""
    assert idle_start(np.asarray(actions, np.float32)[:, None], np.ones(1)) == steps


def recipe(root: Path, **data: Any) -> dict[str, Any]:
    return {
        "recipe": 1,
        "name": "case",
        "data": {"path": str(root), "horizon": 3, "validation": 0.3, **data},
        "policy": {
            "backbones": {"proprio": {"type": "mlp", "width": 8, "reads": ["observation.state"]}},
            "head": {"type": "mlp", "reads": ["proprio"], "hidden": [8]},
        },
        "transforms": [{"type": "normalize"}],
        "training": {"steps": 2, "batch_size": 4, "precision": "fp32"},
    }


def test_a_recipe_uses_the_chosen_episodes_and_evaluation_too(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0", lengths=(7, 5, 9, 8, 6, 7)).root
    builder = Builder.from_recipe(recipe(root, where={"length": [6, None]}, trim="idle_start"))
    training, validation = builder.datasets()
    assert validation is not None
    assert sorted([*training.episodes, *validation.episodes]) == [0, 2, 3, 4, 5]  # type: ignore[attr-defined]
    builder.train(output=tmp_path / "run", device="cpu")
    result = evaluate(tmp_path / "run", open_loop=True, device="cpu")
    assert not [line for line in result.lines if "has changed" in line]


def test_an_impossible_condition_is_located_in_the_recipe(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    with pytest.raises(RecipeError, match=r"no column `sucess`") as caught:
        Builder.from_recipe(recipe(root, where={"sucess": True})).check()
    assert "E023" in caught.value.diagnostics[0].code


def test_bad_episodes_stop_a_run_or_are_skipped_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", lengths=(7, 5, 9, 8, 6, 7)).root
    path = root / "data/chunk-000/episode_000001.parquet"
    rewrite_parquet(path, lambda table: table.slice(0, 2))
    video = root / "videos/chunk-001/observation.images.top/episode_000004.mp4"
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(RecipeError, match=r"episode_000001.parquet has 2 rows"):
        Builder.from_recipe(recipe(root)).check()
    builder = Builder.from_recipe(recipe(root, on_bad_episode="skip"))
    training, validation = builder.datasets()
    assert validation is not None
    assert sorted([*training.episodes, *validation.episodes]) == [0, 2, 3, 5]  # type: ignore[attr-defined]
    assert "left out episode 1 of" in caplog.text
    assert "left out episode 4 of" in caplog.text
    assert "2 of 6 episodes are left out" in caplog.text
    samples = [training[i]["observation.images.top"] for i in range(len(training))]  # type: ignore[arg-type]
    assert len({read_code(sample[0].numpy()) for sample in samples}) == len(samples)
    builder.train(output=tmp_path / "run", device="cpu")
    result = evaluate(tmp_path / "run", open_loop=True, device="cpu")
    assert not [line for line in result.lines if "has changed" in line or "No open-loop" in line]
