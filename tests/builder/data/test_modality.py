"""GR00T's and InternManip's modality.json, and slices of columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from policysmith.builder import Builder
from policysmith.builder.data.dataset import LeRobotDataset, inspect
from policysmith.builder.data.writing.writer import LeRobotWriter
from policysmith.schemas import console
from policysmith.schemas.errors import DatasetError

from .synthetic import FPS, edit_json, rewrite_parquet

PARTS = {
    "left_arm": (0, 7),
    "right_arm": (7, 14),
    "left_hand": (14, 20),
    "right_hand": (20, 26),
    "waist": (26, 44),
}


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A set of 44 packed dimensions, as of NVIDIA's GR1, and its actions (N, 44)."""
    generator = np.random.default_rng(0)
    names = [f"motor_{i}" for i in range(44)]
    actions = []
    with LeRobotWriter(
        tmp_path / "set", fps=FPS, cameras={}, vectors={"action": names, "observation.state": names}
    ) as writer:
        for length in (20, 24):
            actions.append(generator.normal(size=(length, 44)).astype(np.float32))
            writer.add_episode("pick", {"action": actions[-1], "observation.state": actions[-1] + 1})
    entries = {name: {"start": start, "end": end} for name, (start, end) in PARTS.items()}
    entries["left_arm"]["rotation_type"] = "quaternion"  # type: ignore[assignment]
    modality = {
        "state": {name: {**entry, "original_key": "observation.state"} for name, entry in entries.items()},
        "action": entries,
        "video": {},
        "annotation": {"human.task": {"original_key": "task_index"}},
    }
    (tmp_path / "set/meta/modality.json").write_text(json.dumps(modality))
    return tmp_path / "set", np.concatenate(actions)


COLUMNS: dict[str, Any] = {
    "action": ["action.right_arm", "action.right_hand"],
    "observation.state": ["state.waist", "observation.state[0:2]"],
}


def test_named_and_numbered_slices_are_joined_in_order(packed: tuple[Path, np.ndarray]) -> None:
    root, actions = packed
    dataset = LeRobotDataset(root, columns=COLUMNS)
    for index in range(len(dataset)):
        sample = dataset[index]
        row = actions[index]
        assert torch.equal(sample["action"][0], torch.from_numpy(np.concatenate([row[7:14], row[20:26]])))
        expected = np.concatenate([row[26:44], row[0:2]]) + np.float32(1)
        assert torch.equal(sample["observation.state"][0], torch.from_numpy(expected))
    info = inspect(root, COLUMNS)
    assert info.action_names == tuple(f"motor_{i}" for i in [*range(7, 14), *range(20, 26)])
    assert inspect(root).action_dim == 44


@pytest.mark.parametrize("source", ["observation.state[0:7]", "observation.state[:7]"])
def test_a_slice_alone_is_a_column(packed: tuple[Path, np.ndarray], source: str) -> None:
    dataset = LeRobotDataset(packed[0], columns={"observation.state": source})
    assert dataset.shape("observation.state") == (1, 7)


def test_a_recipe_with_slices_trains(packed: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    recipe = {
        "recipe": 1,
        "name": "arm",
        "data": {"path": str(packed[0]), "horizon": 4, "columns": COLUMNS},
        "policy": {
            "backbones": {"proprio": {"type": "mlp", "width": 8}},
            "head": {"type": "mlp", "hidden": [8]},
        },
        "transforms": [{"type": "normalize"}],
        "training": {"steps": 2, "batch_size": 4},
    }
    policy = Builder.from_recipe(recipe).train(output=tmp_path / "run", device="cpu").policy
    assert policy.select_action({"observation.state": torch.zeros(20), "task": "pick"}).shape == (13,)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"action": "action[40:50]"}, r"dimensions 40 to 50 of `action`, which is float32 with 44 values"),
        ({"action": "action[5:5]"}, r"use a range from 0 to 44"),
        ({"action": ["action.left_arn"]}, r"no column `action.left_arn`"),
        ({"action": ["action[0:2]", "action[0:2]"]}, "twice"),
    ],
)
def test_slices_that_do_not_exist_are_refused(
    packed: tuple[Path, np.ndarray], columns: Any, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(packed[0], columns=columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["action"]["waist"].update(end=45), r"`action.waist` has the dimensions 26 to 45"),
        (lambda m: m["action"]["waist"].update(start="a"), r"`action.waist` has the dimensions a to 44"),
        (
            lambda m: m["state"]["waist"].update(original_key="joints"),
            r"is of the column `joints`, which .* does not have",
        ),
        (lambda m: m.update(state=[1]), r"`state` must map names to mappings"),
    ],
)
def test_a_modality_that_contradicts_the_set_is_located(
    packed: tuple[Path, np.ndarray], change: Any, message: str
) -> None:
    edit_json(packed[0] / "meta/modality.json", change)
    with pytest.raises(DatasetError, match=rf"modality.json: .*{message}"):
        inspect(packed[0])


def test_comments_are_said(packed: tuple[Path, np.ndarray]) -> None:
    path = packed[0] / "meta/modality.json"
    path.write_text("// mine\n" + path.read_text())
    with pytest.raises(DatasetError, match=r"modality.json:1 has a `//` comment"):
        inspect(packed[0])


def separate(root: Path) -> None:
    """Store the parts in columns of their own, as InternManip does, without `action` and `observation.state`."""

    def split(table: pa.Table) -> pa.Table:
        for kind, key in (("state", "observation.state"), ("action", "action")):
            values = np.asarray(table[key].to_pylist(), np.float32)
            table = table.drop_columns([key])
            for name, (start, end) in PARTS.items():
                table = table.append_column(f"{kind}.{name}", pa.array(values[:, start:end].tolist()))
        return table

    for path in root.glob("data/*/*.parquet"):
        rewrite_parquet(path, split)

    def describe(info: dict[str, Any]) -> None:
        features = info["features"]
        for kind, key in (("state", "observation.state"), ("action", "action")):
            del features[key]
            for name, (start, end) in PARTS.items():
                features[f"{kind}.{name}"] = {"dtype": "float32", "shape": [end - start], "names": None}

    edit_json(root / "meta/info.json", describe)
    modality = {kind: {name: {"absolute": True} for name in PARTS} for kind in ("state", "action")}
    modality["state"]["waist"] |= {"original_key": "state.waist"}  # type: ignore[dict-item]
    (root / "meta/modality.json").write_text(json.dumps(modality))


def test_parts_in_columns_of_their_own_are_joined_unasked(
    packed: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    root, actions = packed
    separate(root)
    dataset = LeRobotDataset(root)
    held = torch.stack([dataset[index]["action"][0] for index in range(len(dataset))])
    assert torch.equal(held, torch.from_numpy(actions))
    assert dataset.shape("observation.state") == (1, 44)
    assert LeRobotDataset(root, columns={"action": "action.waist"}).shape("action") == (1, 18)
    assert console.policysmith(["data", "info", str(root)]) == 0
    assert "action.left_arm" in capsys.readouterr().out


def test_instructions_by_annotation(packed: tuple[Path, np.ndarray]) -> None:
    root, _ = packed

    def rename(table: pa.Table) -> pa.Table:
        return table.rename_columns(
            ["annotation.human.task" if name == "task_index" else name for name in table.column_names]
        )

    for path in root.glob("data/*/*.parquet"):
        rewrite_parquet(path, rename)

    def describe(info: dict[str, Any]) -> None:
        info["features"]["annotation.human.task"] = info["features"].pop("task_index")

    edit_json(root / "meta/info.json", describe)
    edit_json(root / "meta/modality.json", lambda m: m.update(annotation={"human.task": {}}))
    assert LeRobotDataset(root)[3]["task"] == "pick"
