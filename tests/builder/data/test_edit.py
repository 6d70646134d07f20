"""An edited dataset holds what the source's selection holds; every wrong edit is one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from policysmith.builder.data.editing.edit import Edits, edit
from policysmith.builder.data.frames.choice import FrameChoice
from policysmith.builder.data.frames.store import open_cameras
from policysmith.builder.data.lerobot.layout import read_layout
from policysmith.builder.data.lerobot.table import read_table
from policysmith.builder.data.selection import matching
from policysmith.schemas.errors import DatasetError

from .synthetic import TASKS, VERSIONS, read_code, rewrite_parquet, write_dataset, write_robot

Episode = dict[str, Any]


def contents(root: Path) -> list[Episode]:
    """Return columns, instructions and numbers shown by the pictures, an episode each."""
    layout = read_layout(root)
    table = read_table(layout, layout.episodes)
    stores = open_cameras(layout, list(layout.cameras.values()), layout.episodes, FrameChoice("stream"))
    found = []
    for first, length in zip(table.first_rows, table.lengths, strict=True):
        rows = range(first, first + length)
        episode: Episode = {
            key: values[first : first + length].tolist() for key, values in table.columns.items()
        }
        episode["task"] = [layout.tasks[int(table.task_index[row])] for row in rows]
        for name, store in stores.items():
            episode[name] = [read_code(image) for image in store.read(rows)]
        found.append(episode)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("image_camera", [False, True])
def test_kept_episodes_are_those_of_the_source(tmp_path: Path, version: str, image_camera: bool) -> None:
    write_dataset(tmp_path / "set", version, image_camera=image_camera)
    edit([tmp_path / "set"], tmp_path / "new", Edits(delete="1,3", trim_start=1, trim_end=1))
    before = contents(tmp_path / "set")
    assert contents(tmp_path / "new") == [
        {key: values[1:-1] for key, values in before[number].items()} for number in (0, 2, 4)
    ]


def test_deleted_then_merged_is_kept(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", "v3.0").root
    edit([source], tmp_path / "first", Edits(delete="2-4"))
    edit([source], tmp_path / "last", Edits(delete="0-2"))
    edit([tmp_path / "first", tmp_path / "last"], tmp_path / "merged", Edits())
    edit([source], tmp_path / "kept", Edits(keep="0,1,3-4"))
    assert contents(tmp_path / "merged") == contents(tmp_path / "kept")
    merged, kept = (json.loads((tmp_path / n / "meta/stats.json").read_text()) for n in ("merged", "kept"))
    for key in ("action", "observation.state", "timestamp"):
        for name, numbers in kept[key].items():
            np.testing.assert_allclose(merged[key][name], numbers, rtol=1e-12)


def test_whole_videos_are_copied(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", "v3.0").root
    done = edit([source], tmp_path / "new", Edits(tasks={TASKS[0]: "shove it"}))
    assert (done.copied, done.encoded) == (4, 0)
    before, after = (sorted(p.read_bytes() for p in r.rglob("*.mp4")) for r in (source, tmp_path / "new"))
    assert before == after
    assert set(read_layout(tmp_path / "new").tasks.values()) == {"shove it", TASKS[1]}
    provenance = json.loads((tmp_path / "new/meta/edit.json").read_text())
    assert len(provenance["sources"][0]["fingerprint"]) == 64


@pytest.mark.parametrize("name", ["wrist", "observation.images.wrist", "observation.touch"])
def test_dropped_columns_are_gone(tmp_path: Path, name: str) -> None:
    edit([write_dataset(tmp_path / "set", "v2.1").root], tmp_path / "new", Edits(drop=(name,)))
    layout = read_layout(tmp_path / "new")
    assert name.rpartition(".")[2] not in {*layout.cameras, *(k.rpartition(".")[2] for k in layout.features)}
    assert len(contents(tmp_path / "new")) == 5


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (Edits(delete="9"), "no episode 9"),
        (Edits(keep="3-1"), "names no episodes"),
        (Edits(delete="0-4"), "no episode would be left"),
        (Edits(trim_start=2, trim_end=1), "episode 3 .* has 3 frames"),
        (Edits(drop=("wirst",)), "no column `wirst`"),
        (Edits(drop=("timestamp",)), "no column `timestamp` to drop"),
        (Edits(tasks={"push": "pull"}), "no set has the task `push`"),
    ],
)
def test_a_wrong_edit_is_an_error(tmp_path: Path, edits: Edits, message: str) -> None:
    source = write_dataset(tmp_path / "set", "v2.1").root
    with pytest.raises(DatasetError, match=message):
        edit([source], tmp_path / "new", edits)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["set"]


def test_sets_of_two_robots_are_not_merged(tmp_path: Path) -> None:
    one = write_robot(tmp_path / "one", state=3, action=2, cameras={})
    other = write_robot(tmp_path / "other", state=4, action=2, cameras={})
    slow = write_robot(tmp_path / "slow", state=3, action=2, cameras={}, fps=5)
    for second, message in ((other, "differ in the column `observation.state`"), (slow, "10 and 5 frames")):
        with pytest.raises(DatasetError, match=f"{one} and {second} .*{message}"):
            edit([one, second], tmp_path / "new", Edits())


def test_notes_on_episodes_are_kept(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", "v3.0").root
    for path in (source / "meta/episodes").rglob("*.parquet"):
        rewrite_parquet(
            path,
            lambda table: table.append_column(
                "success", [[i % 2 == 0 for i in table["episode_index"].to_pylist()]]
            ),
        )
    edit([source], tmp_path / "new", Edits(keep="1-3"))
    layout = read_layout(tmp_path / "new")
    assert matching(layout, {"success": True}, range(3)) == (1,)


def test_values_that_are_not_finite_have_no_statistics(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", "v3.0").root

    def spoil(table: pa.Table) -> pa.Table:
        actions = table["action"].to_pylist()
        actions[0] = [float("nan")] * len(actions[0])
        return table.set_column(
            table.column_names.index("action"), "action", pa.array(actions, table["action"].type)
        )

    rewrite_parquet(next((source / "data").rglob("*.parquet")), spoil)
    with pytest.raises(DatasetError, match=r"`action` of episode \d of .* not finite"):
        edit([source], tmp_path / "new", Edits())
    assert not (tmp_path / "new").exists()
    edit([source], tmp_path / "new", Edits(drop=("action",)))
