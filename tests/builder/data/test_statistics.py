"""Statistics against plain loops over the values."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.lerobot.table import EpisodeTable
from policysmith.builder.data.statistics import compute_statistics, unusable
from policysmith.schemas.errors import DatasetError

from .synthetic import rewrite_parquet, write_dataset


def quantile(values: list[float], fraction: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def brute_force(values: list[float]) -> dict[str, float]:
    mean = math.fsum(values) / len(values)
    return {
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)),
        "min": min(values),
        "max": max(values),
        "q01": quantile(values, 0.01),
        "q99": quantile(values, 0.99),
    }


def table_of(action: np.ndarray, lengths: tuple[int, ...]) -> EpisodeTable:
    firsts = tuple(int(first) for first in np.cumsum((0, *lengths[:-1])))
    episodes = tuple(range(10, 10 + len(lengths)))
    skipped = (0,) * len(lengths)
    return EpisodeTable(
        {"action": action}, np.zeros(len(action), dtype=np.int64), episodes, lengths, firsts, skipped
    )


@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.floats(-1e6, 1e6, width=32)
    )
)
def test_agrees_with_brute_force(values: np.ndarray) -> None:
    found = compute_statistics(table_of(values, (len(values),)))["action"]
    assert found.pop("count") == [len(values)]
    for dimension in range(values.shape[1]):
        for name, expected in brute_force([float(value) for value in values[:, dimension]]).items():
            assert found[name][dimension] == pytest.approx(expected, rel=1e-9, abs=1e-6), name


def test_small_spread_far_from_zero_keeps_its_digits() -> None:
    values = (1e4 + np.arange(8) % 2 / 512).astype(np.float32)[:, None]
    assert compute_statistics(table_of(values, (8,)))["action"]["std"] == [pytest.approx(1 / 1024, rel=1e-9)]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_covers_the_episodes_asked_for(tmp_path: Path, version: str) -> None:
    data = write_dataset(tmp_path / "set", version)
    table = LeRobotDataset(data.root, cameras=[], episodes=[1, 2, 4]).table
    for episodes, rows in (([1, 2, 4], [*range(7, 21), *range(24, 30)]), ([4], list(range(24, 30)))):
        found = compute_statistics(table, episodes=episodes)
        assert json.loads(json.dumps(found)) == found
        assert found.keys() == data.columns.keys()
        for key, values in data.columns.items():
            chosen = values[rows].astype(np.float64)
            np.testing.assert_allclose(found[key]["mean"], chosen.mean(axis=0))
            np.testing.assert_allclose(found[key]["std"], np.sqrt(((chosen - chosen.mean(0)) ** 2).mean(0)))
            assert found[key]["count"] == [len(rows)]
    with pytest.raises(DatasetError, match=r"found \[3\]"):
        compute_statistics(table, episodes=[3])
    with pytest.raises(DatasetError, match=r"found none"):
        compute_statistics(table, episodes=[])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e28])
def test_values_that_are_not_finite_are_located(value: float) -> None:
    values = np.zeros((12, 3), dtype=np.float32)
    values[9, 2] = value
    table = table_of(values, (7, 5))
    with pytest.raises(
        DatasetError,
        match=rf"`action` has the value {re.escape(f'{value:.6g}')} in episode 11, frame 2, dimension 2$",
    ):
        compute_statistics(table)
    assert compute_statistics(table, episodes=[10])["action"]["max"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("first", "step", "lost"),
    [
        (1_790_000_000, 20.0, True),  # minutes in seconds since 1970
        (1_790_000_000, 1000.0, True),  # hours of them: steps of 128
        (1_790_000_000, 0.0, False),  # the same everywhere
        (1_000_000, 0.25, True),  # steps of 0.0625, of changes by 1.5
        (1_000_000, 1.0, False),  # whole numbers that float32 holds
        (20_000_000, 10_000.0, False),
        (20_000, 0.5, False),
        (0, 1e-6, False),
    ],
)
def test_a_column_whose_changes_float32_rounds_away_is_unusable(
    first: float, step: float, lost: bool
) -> None:
    values = np.zeros((12, 3))
    values[:, 1] = first + step * np.arange(12)
    found = unusable(table_of(values.astype(np.float32), (7, 5)))
    assert found.keys() == ({"action"} if lost else set())
    if lost:
        assert re.search(
            r"`action` ranges from .* in dimension 1, where float32 .* `data.columns`", found["action"]
        )


def test_a_number_that_differs_by_episode_only_is_unusable_if_it_is_rounded() -> None:
    values = np.repeat(np.float32([[1e9], [2e9]]), (7, 5), axis=0)
    assert unusable(table_of(values, (7, 5))).keys() == {"action"}
    assert not unusable(table_of(values / 1e9, (7, 5)))


def test_a_null_in_the_file_counts_as_nan(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "set", "v2.1").root

    def blank(table: pa.Table) -> pa.Table:
        rows = table["action"].to_pylist()
        rows[3][1] = None
        place = table.schema.get_field_index("action")
        return table.set_column(place, "action", pa.array(rows, type=pa.list_(pa.float32())))

    rewrite_parquet(root / "data/chunk-000/episode_000001.parquet", blank)
    table = LeRobotDataset(root, cameras=[]).table
    with pytest.raises(DatasetError, match=r"`action` has the value nan in episode 1, frame 3, dimension 1"):
        compute_statistics(table)
