"""Batches of windows against the dataset's own samples, and running statistics against those of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policysmith.builder.data.dataset import LeRobotDataset
from policysmith.builder.data.lerobot.layout import read_layout
from policysmith.builder.data.lerobot.table import EpisodeTable, read_table
from policysmith.builder.data.statistics import RunningStatistics, compute_statistics
from policysmith.builder.data.windows import windows

from .synthetic import write_dataset


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("seen", "done"), [([0], range(4)), ([-2, -1, 0], range(30)), ([-3, 0], [0, 2])])
def test_windows_are_what_samples_hold(tmp_path: Path, size: int, seen: list[int], done: range) -> None:
    root = write_dataset(tmp_path / "set", "v3.0").root
    episodes = [1, 2]
    dataset = LeRobotDataset(
        root, cameras=[], observation_indices=seen, action_indices=done, episodes=episodes
    )
    layout = read_layout(root)
    batches = list(windows(read_table(layout, layout.choose_episodes(episodes)), seen, done, size))
    assert all(len(batch["action"]) <= size for batch in batches)
    samples = [dataset[index] for index in range(len(dataset))]
    assert {key for key in samples[0] if key not in ("index", "task")} == batches[0].keys()
    for key in batches[0]:
        whole = torch.cat([batch[key] for batch in batches])
        assert torch.equal(whole, torch.stack([sample[key] for sample in samples])), key


@settings(max_examples=100)
@given(
    count=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    limit=st.integers(1, 500),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_pieces_give_the_statistics_of_the_whole(
    count: int, cuts: list[int], limit: int, offset: float, seed: int
) -> None:
    rows = (np.random.default_rng(seed).normal(size=(count, 3)) + offset).astype(np.float32)
    table = EpisodeTable({"action": rows}, np.zeros(count, dtype=np.int64), (0,), (count,), (0,), (0,))
    expected = compute_statistics(table)["action"]
    running = RunningStatistics(limit)
    for piece in np.split(rows, sorted(min(cut, count) for cut in cuts)):
        running.add(piece)
    found = running.result()
    assert found.keys() == expected.keys()
    exact = expected.keys() if limit >= count else expected.keys() - {"q01", "q99"}
    for name in exact:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
    stride = 1
    while -(-count // stride) > limit:
        stride *= 2
    kept = rows[::stride].astype(np.float64)
    np.testing.assert_array_equal(found["q99"], np.quantile(kept, 0.99, axis=0))
