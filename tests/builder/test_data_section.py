"""The `data` section of a recipe: columns under other names, columns that nothing reads, and what `check` finds in files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from policysmith.builder import Builder
from policysmith.builder.data.lerobot.info import inspect
from policysmith.builder.evaluation.evaluate import evaluate
from policysmith.schemas import console
from policysmith.schemas.diagnostics import Diagnostic

from .data.synthetic import edit_json, rewrite_parquet, write_dataset

Refused = Callable[[Callable[[], Any]], tuple[Diagnostic, ...]]
PROPRIO = {"type": "mlp", "width": 8, "reads": ["observation.state"]}


def recipe(root: Path, columns: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "recipe": 1,
        "name": "case",
        "data": {"path": str(root), "horizon": 3, "cameras": None, "columns": columns},
        "policy": {
            "backbones": {"proprio": PROPRIO},
            "head": {"type": "mlp", "reads": ["proprio"], "hidden": [8]},
        },
        "transforms": [{"type": "normalize"}],
        "training": {"steps": 2, "batch_size": 4, "precision": "fp32"},
        **more,
    }


def changed(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in root.glob("data/*/*.parquet"):
        rewrite_parquet(path, change)


def add(root: Path, name: str, shape: list[int], values: Callable[[int], np.ndarray]) -> None:
    """Add a numeric column of one shape."""

    def with_column(table: pa.Table) -> pa.Table:
        kind = pa.float64()
        for _ in shape:
            kind = pa.list_(kind)
        return table.append_column(name, pa.array(values(table.num_rows).tolist(), kind))

    changed(root, with_column)
    feature = {"dtype": "float32", "shape": shape, "names": None}
    edit_json(root / "meta/info.json", lambda info: info["features"].update({name: feature}))


@pytest.fixture
def openpi(tmp_path: Path) -> Path:
    """A dataset with openpi's names: `state`, `actions`, and a gripper by itself."""
    root = write_dataset(tmp_path / "openpi", "v2.1").root
    names = {"observation.state": "state", "action": "actions"}
    changed(root, lambda table: table.rename_columns([names.get(n, n) for n in table.column_names]))

    def rename(info: dict[str, Any]) -> None:
        for old, new in names.items():
            info["features"][new] = info["features"].pop(old)

    edit_json(root / "meta/info.json", rename)
    add(root, "gripper", [1], lambda rows: np.arange(rows)[:, None] / 10)
    return root


MAPPED = {"action": ["gripper", "actions"], "observation.state": "state"}


def test_columns_are_renamed_and_joined_in_the_order_of_the_list(openpi: Path, tmp_path: Path) -> None:
    builder = Builder.from_recipe(recipe(openpi, MAPPED)).check()
    dataset, _ = builder.datasets()
    table = pq.read_table(openpi / "data/chunk-000/episode_000001.parquet")
    expected = np.column_stack([np.arange(5) / 10, np.stack(table["actions"].to_numpy())])
    np.testing.assert_allclose(dataset[7]["action"].numpy(), expected[:3], rtol=1e-6)
    np.testing.assert_array_equal(dataset[8]["observation.state"][0].numpy(), table["state"][1].as_py())
    assert "state" not in dataset[0]
    info = inspect(openpi, MAPPED)
    assert info.action_names == ("gripper", "dx", "dy")
    assert info.columns["action"] == "float32 [3] from `gripper` and `actions`"
    statistics = builder.sources[0].statistics
    assert statistics is not None
    every = np.concatenate([np.arange(n) / 10 for n in (7, 5, 9, 3, 6)])
    assert statistics["action"]["mean"][0] == pytest.approx(every.mean(), rel=1e-6)
    others = Builder.from_recipe(recipe(openpi, {**MAPPED, "action": ["actions", "gripper"]})).datasets()[0]
    assert others.fingerprint != dataset.fingerprint  # type: ignore[attr-defined]

    builder.train(output=tmp_path / "run")
    result = evaluate(tmp_path / "run", open_loop=True, device="cpu")
    assert result.open_loop is not None
    assert result.open_loop.action_names == ("gripper", "dx", "dy")
    assert not any("has changed" in note for note in result.notes)


def test_columns_of_one_of_several_robots(openpi: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", "v3.0").root
    sources = {"a": {"path": str(openpi), "columns": MAPPED}, "b": {"path": str(other)}}
    section = {"sources": sources, "horizon": 3}
    many = recipe(openpi) | {"data": section}
    builder = Builder.from_recipe(many).check()
    assert [source.info.action_dim for source in builder.sources] == [3, 2]


def test_transforms_work_on_mapped_columns(openpi: Path) -> None:
    transforms = [{"type": "delta_actions", "state_dims": [0, 1, 2]}, {"type": "normalize"}]
    section = recipe(openpi, {**MAPPED, "observation.state": ["gripper", "state"]}, transforms=transforms)
    Builder.from_recipe(section).check()


def test_a_missing_action_names_the_columns_and_the_mapping(openpi: Path, refused: Refused) -> None:
    (found,) = refused(lambda: Builder.from_recipe(recipe(openpi)).check())
    assert "`actions` float32 [2]" in found.label
    assert "columns: {action: actions}" in found.help
    (found,) = refused(lambda: Builder.from_recipe(recipe(openpi, {"action": "actions"})).check())
    assert "`state` float32 [3]" in found.notes[0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"action": "actoins"}, "no column `actoins`|did you mean `actions`?"),
        ({"action": ["actions", "griper"]}, "no column `griper`|did you mean `gripper`?"),
        ({"actions": "actions"}, "`actions` is not a feature that a policy reads|did you mean `action`?"),
        ({"observation.images.x": "state"}, "column `state` is float32 [3], not images|does not fit"),
        ({"action": "observation.images.top"}, "is video [32, 64, 3], not numbers|does not fit"),
        ({"observation.nothing": None}, "no column `observation.nothing`|"),
    ],
)
def test_columns_that_do_not_fit(openpi: Path, refused: Refused, columns: Any, words: str) -> None:
    message, label = words.split("|")
    (found,) = refused(lambda: Builder.from_recipe(recipe(openpi, columns)).check())
    assert message in found.message
    assert label in found.label


def test_a_camera_is_renamed(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    section = recipe(root, {"observation.images.front": "observation.images.top"})
    section["data"]["cameras"] = ["front"]
    dataset, _ = Builder.from_recipe(section).datasets()
    assert dataset[0]["observation.images.front"].shape == (1, 3, 32, 64)


def test_data_info_tells_what_to_map(openpi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_json(
        openpi / "meta/info.json", lambda info: info["features"]["actions"].update(names=["[/b]", "a\x1b[2J"])
    )
    assert console.policysmith(["data", "info", str(openpi)]) == 0
    written = capsys.readouterr().out
    assert "camera top: 32 x 64 (height x width)" in written
    assert "columns: {action: actions}" in written
    edit_json(
        openpi / "meta/info.json",
        lambda info: info["features"].update(action=info["features"].pop("actions")),
    )
    assert console.policysmith(["data", "info", str(openpi)]) == 0
    assert "action: [/b], a\ufffd[2J" in capsys.readouterr().out


@pytest.mark.parametrize("first", [np.nan, 1.79e9])
def test_a_column_that_nothing_reads_may_be_unusable(tmp_path: Path, first: float) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    add(root, "observation.effort", [2], lambda rows: first + 100.0 * np.arange(2 * rows).reshape(-1, 2))
    builder = Builder.from_recipe(recipe(root)).check()
    dataset, _ = builder.datasets()
    assert "observation.effort" not in dataset[0]
    (warning,) = (each for each in builder.warnings if each.code == "W009 dropped-column")
    assert "`observation.effort` is dropped" in warning.message


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e28, 1e300])
def test_a_column_that_is_read_must_be_finite(tmp_path: Path, refused: Refused, value: float) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root

    def spoilt(rows: int) -> np.ndarray:
        values = np.zeros((rows, 2))
        values[2:, 1] = value
        return values

    add(root, "observation.effort", [2], spoilt)
    readers: list[dict[str, Any]] = [
        {"policy": {"backbones": {"proprio": {"type": "mlp", "width": 8}}, "head": {"type": "mlp"}}},
        {"transforms": [{"type": "normalize", "keys": ["observation.effort", "action"]}]},
    ]
    for more in readers:
        (found,) = refused(lambda more=more: Builder.from_recipe(recipe(root, **more)).check())
        assert "`observation.effort` has the value" in found.message
        assert "in episode 0, frame 2, dimension 1" in found.message
        assert "columns: {observation.effort: null}" in found.help
    left_out = recipe(root, {"observation.effort": None}, **readers[0])
    Builder.from_recipe(left_out).check()


def test_a_clock_is_read_by_nobody(tmp_path: Path, refused: Refused) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    add(root, "observation.effort", [2], lambda rows: 1.79e9 + 100.0 * np.arange(2 * rows).reshape(-1, 2))
    proprio = {"backbones": {"proprio": {"type": "mlp", "width": 8}}, "head": {"type": "mlp"}}
    (found,) = refused(lambda: Builder.from_recipe(recipe(root, policy=proprio)).check())
    assert "where float32 has steps of 128" in found.message


@pytest.mark.parametrize("shape", [[2, 2], [1, 2], [2, 1]])
def test_nested_values_are_flattened_row_by_row(tmp_path: Path, shape: list[int]) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    changed(root, lambda table: table.drop_columns("action"))
    size = int(np.prod(shape))
    add(root, "action", shape, lambda rows: np.arange(rows * size).reshape(rows, *shape))
    dataset, _ = Builder.from_recipe(recipe(root)).check().datasets()
    assert dataset[1]["action"][0].tolist() == list(range(size, 2 * size))


def test_images_kept_as_numbers_are_no_state(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    add(root, "observation.images.depth", [2, 3, 1], lambda rows: np.ones((rows, 2, 3, 1)))
    builder = Builder.from_recipe(recipe(root)).check()
    dataset, _ = builder.datasets()
    assert "observation.images.depth" not in dataset[0]
    (warning,) = (each for each in builder.warnings if each.code == "W009 dropped-column")
    assert "images stored as numbers" in warning.message


def test_an_instruction_that_is_too_long_is_found_before_training(tmp_path: Path, refused: Refused) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root
    for prompt in ("{task}", "{task} at {state}"):
        collator = {"type": "language", "tokenizer": "policysmith/tiny", "max_length": 2, "prompt": prompt}
        language = {"type": "language", "architecture": "policysmith/tiny-t5"}
        more = recipe(root, collator=collator)
        more["policy"]["backbones"]["words"] = language
        more["policy"]["head"]["reads"] = ["proprio", "words.pooled"]
        (found,) = refused(lambda more=more: Builder.from_recipe(more).check())
        assert "prompts are longer than `max_length: 2`" in found.message
        more["collator"]["truncate"] = "end"
        Builder.from_recipe(more).check()


def png(height: int, width: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "is not a readable image"),
        (png(32, 64)[:45], "is not a readable image"),
        (png(64, 32), "has 64 x 32 pixels (height x width), but meta/info.json specifies 32 x 64"),
        (png(30_000, 30_000, mode="1"), "excessive size"),
    ],
)
def test_check_finds_a_corrupt_image(tmp_path: Path, refused: Refused, data: bytes, words: str) -> None:
    root = write_dataset(tmp_path / "set", "v2.1", image_camera=True).root

    def spoilt(table: pa.Table) -> pa.Table:
        cells = table["observation.images.wrist"].to_pylist()
        cells[4]["bytes"] = data
        place = table.schema.get_field_index("observation.images.wrist")
        return table.set_column(place, "observation.images.wrist", pa.array(cells))

    rewrite_parquet(root / "data/chunk-000/episode_000001.parquet", spoilt)
    (found,) = refused(lambda: Builder.from_recipe(recipe(root)).check())
    assert words in found.message
    assert "row 4 of `observation.images.wrist`" in found.message


@pytest.mark.parametrize("fault", ["missing", "truncated", "pipe", "short"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_check_finds_a_bad_video(tmp_path: Path, refused: Refused, version: str, fault: str) -> None:
    import os

    from .data.synthetic import encode, picture
    from .data.test_faults import FRAMES, VIDEO

    root = write_dataset(tmp_path / "set", version).root
    path = root / VIDEO[version]
    content = path.read_bytes()
    path.unlink()
    if fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "pipe":
        os.mkfifo(path)
    elif fault == "short":
        encode(path, (picture(frame) for frame in range(FRAMES[version] - 2)))
    words = {
        "missing": "is missing",
        "truncated": "cannot be decoded",
        "pipe": "a named pipe",
        "short": "too early",
    }
    (found,) = refused(lambda: Builder.from_recipe(recipe(root)).check())
    assert words[fault] in found.message
    assert path.name in found.message


def test_home_is_written_out_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "set", "v2.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    builder = Builder.from_recipe(recipe(Path("~/set"))).check()
    builder.train(output="~/run")
    assert (tmp_path / "run" / "policy").exists()
    assert evaluate("~/run", open_loop=True, device="cpu", output="~/judged").open_loop is not None  # type: ignore[arg-type]
    assert (tmp_path / "judged").is_dir()
    assert inspect("~/set").fps == 10
