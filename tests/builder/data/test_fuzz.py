"""Datasets spoilt at random: whatever is wrong with their files, only the project's own errors come out, and soon."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.frames.probing import probe_cameras
from policysmith.builder.data.lerobot.info import inspect
from policysmith.builder.data.statistics import compute_statistics
from policysmith.schemas.errors import PolicysmithError

from .synthetic import write_dataset

SECONDS = 5.0
ROUNDS = [25, pytest.param(2_000, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)])]
VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1,
        7,
        2**31,
        2**63,
        10**100,
        1e300,
        -0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "many",
    ),
    *(
        [],
        {},
        [None],
        [[]],
        ["a", 5],
        {"a": {"b": []}},
        "\0",
        "../..",
        "/etc",
        "a" * 5_000,
        "[/b]",
        "$\\frac{$",
        "\x1b[2J",
    ),
    *(
        "{}",
        "{0}",
        "{video_key",
        "{episode_index:>1000000000}",
        "{chunk_index!r:9999}",
        "{video_key.__class__}",
        "9" * 40,
    ),
]
Spoil = Callable[[Path, random.Random], None]


def read(root: Path) -> None:
    """Everything that a run reads, but for whole videos."""
    inspect(root)
    dataset = LeRobotDataset(root, cameras=[])
    compute_statistics(dataset.table)
    dataset[len(dataset) - 1]
    layout = dataset.layout
    probe_cameras(layout, layout.choose_cameras(None), layout.episodes)


def mutated(value: Any, dice: random.Random) -> Any:
    """Return a JSON value with one place changed, removed or duplicated."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        rest = {other: inner for other, inner in value.items() if other != key}
        roll = dice.random()
        if roll < 0.1:
            return rest
        if roll < 0.2:
            return {**rest, str(dice.choice(VALUES)): value[key]}
        return {**rest, key: mutated(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.85:
        place = dice.randrange(len(value))
        changed = (
            [mutated(value[place], dice)] if dice.random() < 0.8 else [value[place]] * dice.choice([0, 2])
        )
        return [*value[:place], *changed, *value[place + 1 :]]
    return dice.choice(VALUES)


def noise(content: bytes, dice: random.Random) -> bytes:
    """Return bytes with some flipped, removed, duplicated or truncated."""
    data, roll = bytearray(content), dice.random()
    place = dice.randrange(len(data))
    if roll < 0.6:
        for _ in range(dice.choice([1, 1, 4, 30])):
            data[dice.randrange(len(data))] = dice.randrange(256)
    elif roll < 0.8:
        data[place : place + dice.randrange(1, 200)] = b""
    elif roll < 0.9:
        data[place:place] = data[place : place + 100]
    else:
        del data[place:]
    return bytes(data)


def json_file(name: str) -> Spoil:
    def spoil(root: Path, dice: random.Random) -> None:
        path = root / name
        if dice.random() < 0.2:
            path.write_bytes(noise(path.read_bytes(), dice))
        elif name.endswith("l"):
            rows = mutated([json.loads(line) for line in path.read_text().splitlines()], dice)
            path.write_text(
                "".join(f"{json.dumps(row)}\n" for row in (rows if isinstance(rows, list) else [rows]))
            )
        else:
            path.write_text(json.dumps(mutated(json.loads(path.read_text()), dice)))

    return spoil


def parquet_bytes(name: str) -> Spoil:
    def spoil(root: Path, dice: random.Random) -> None:
        path = root / name
        path.write_bytes(noise(path.read_bytes(), dice))

    return spoil


def parquet_values(name: str) -> Spoil:
    def spoil(root: Path, dice: random.Random) -> None:
        path = root / name
        table = pq.read_table(path)
        place = dice.randrange(table.num_columns)
        column, field = table.column(place), table.column_names[place]
        rows, roll = column.to_pylist(), dice.random()
        if roll < 0.15:
            table = table.drop_columns(field)
        elif roll < 0.3:
            table = table.slice(0, dice.randrange(len(rows)))
        elif roll < 0.45:
            casts: list[Any] = [[str(row) for row in rows], [[row] for row in rows], [None] * len(rows)]
            table = table.set_column(place, field, pa.array(dice.choice(casts)))
        elif roll < 0.6:
            table = table.rename_columns(
                [dice.choice(["", "x", f"{n}!"]) if n == field else n for n in table.column_names]
            )
        else:
            spoilt = mutated(rows, dice) if dice.random() < 0.5 else [dice.choice(VALUES) for _ in rows]
            try:
                table = table.set_column(
                    place, field, pa.array(spoilt, type=column.type if dice.random() < 0.5 else None)
                )
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                table = table.append_column(field, column)  # a column of the same name twice
        pq.write_table(table, path)

    return spoil


V2, V3 = "data/chunk-000/episode_000002.parquet", "data/chunk-001/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TARGETS: dict[str, tuple[str, Spoil]] = {
    "info v2.1": ("v2.1", json_file("meta/info.json")),
    "info v3.0": ("v3.0", json_file("meta/info.json")),
    "episodes v2.1": ("v2.1", json_file("meta/episodes.jsonl")),
    "tasks v2.1": ("v2.1", json_file("meta/tasks.jsonl")),
    "bytes of data v2.1": ("v2.1", parquet_bytes(V2)),
    "bytes of episodes v3.0": ("v3.0", parquet_bytes(EPISODES)),
    "values of data v2.1": ("v2.1", parquet_values(V2)),
    "values of data v3.0": ("v3.0", parquet_values(V3)),
    "values of episodes v3.0": ("v3.0", parquet_values(EPISODES)),
    "values of tasks v3.0": ("v3.0", parquet_values("meta/tasks.parquet")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("target", TARGETS)
def test_only_own_errors_and_no_hang(tmp_path: Path, target: str, rounds: int) -> None:
    version, spoil = TARGETS[target]
    good = write_dataset(tmp_path / "good", version, lengths=(7, 5, 9, 3), image_camera=True).root
    read(good)
    root, refused = tmp_path / "set", 0
    shutil.copytree(good, root)
    contents = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for seed in range(rounds):
        for path, content in contents.items():
            if not path.exists() or path.stat().st_size != len(content) or path.read_bytes() != content:
                path.write_bytes(content)
        spoil(root, random.Random(f"{target} {seed}"))
        started = time.monotonic()
        try:
            read(root)
        except PolicysmithError as error:
            refused += 1
            assert len(str(error)) < 4_000, seed  # noqa: PT017
        except Exception as error:
            raise AssertionError(f"mutation {seed} of {target} raises {error!r}") from error
        assert time.monotonic() - started < SECONDS, seed
    assert refused > rounds // 10
