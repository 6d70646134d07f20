"""Properties of the order of samples drawn from several datasets by weight."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policysmith.builder.data.sampler import MixtureSampler


@dataclass(frozen=True)
class Plan:
    shares: tuple[tuple[int, float], ...]
    batch_size: int
    world_size: int
    seed: int

    def sampler(self, rank: int = 0, start_step: int = 0) -> MixtureSampler:
        return MixtureSampler(
            self.shares,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=self.world_size,
            start_step=start_step,
        )

    def owner(self, index: int) -> int:
        return int(np.searchsorted(np.cumsum([size for size, _ in self.shares]), index, side="right"))


@pytest.fixture(autouse=True)
def short_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles that end within a test."""
    monkeypatch.setattr(MixtureSampler, "CYCLE", 96)


share = st.tuples(st.integers(1, 40), st.floats(0.1, 5.0))
plans = st.builds(
    Plan,
    st.lists(share, min_size=1, max_size=4).map(tuple),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 2**40),
)


def take(sampler: MixtureSampler, count: int) -> list[list[int]]:
    return list(itertools.islice(sampler, count))


@given(plans, st.integers(0, 80), st.integers(0, 80))
def test_resuming_continues(plan: Plan, before: int, after: int) -> None:
    rank = plan.world_size - 1
    assert take(plan.sampler(rank, before), after) == take(plan.sampler(rank), before + after)[before:]


@given(plans, st.integers(0, 80))
def test_every_world_size_sees_the_same_global_batches(plan: Plan, step: int) -> None:
    whole = MixtureSampler(plan.shares, batch_size=plan.batch_size * plan.world_size, seed=plan.seed)
    parts = [plan.sampler(rank).batch(step) for rank in range(plan.world_size)]
    assert list(itertools.chain.from_iterable(parts)) == whole.batch(step)


@given(plans)
def test_each_dataset_is_seen_whole_before_a_sample_comes_back(plan: Plan) -> None:
    drawn = [
        index
        for batch in take(MixtureSampler(plan.shares, batch_size=1, seed=plan.seed), 300)
        for index in batch
    ]
    first = 0
    for size, _ in plan.shares:
        own = [index for index in drawn if first <= index < first + size]
        epochs = [own[start : start + size] for start in range(0, len(own), size)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert all(sorted(epoch) == list(range(first, first + size)) for epoch in epochs[:-1])
        first += size


@given(plans)
def test_every_cycle_holds_the_shares_of_the_weights(plan: Plan) -> None:
    sampler = MixtureSampler(plan.shares, batch_size=MixtureSampler.CYCLE, seed=plan.seed)
    total = sum(weight for _, weight in plan.shares)
    for batch in take(sampler, 3):
        counts = np.bincount([plan.owner(index) for index in batch], minlength=len(plan.shares))
        exact = np.array([weight / total for _, weight in plan.shares]) * MixtureSampler.CYCLE
        assert (np.abs(counts - exact) < 1.0 + (exact < 1.0).sum()).all()
        assert counts.all()


def test_batches_are_drawn_by_weight_at_every_place() -> None:
    """Chi-square over many batches, and over the first places of batches alone."""
    plan = Plan(((30, 1.0), (500, 2.0), (7, 5.0)), batch_size=5, world_size=2, seed=3)
    owners = np.array([[plan.owner(i) for i in batch] for batch in take(plan.sampler(rank=1), 4000)])
    for chosen in (owners.reshape(-1), owners[:, 0]):
        counts, expected = np.bincount(chosen, minlength=3), len(chosen) * np.array([1, 2, 5]) / 8
        assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 99.9 % of chi-square with 2 degrees


def test_owners_come_in_an_order_of_their_own_in_every_cycle() -> None:
    plan = Plan(((50, 1.0), (50, 1.0)), batch_size=96, world_size=1, seed=0)
    orders = {tuple(plan.owner(i) for i in batch) for batch in take(plan.sampler(), 20)}
    assert len(orders) == 20


def test_the_order_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard the order of samples: a change would make earlier runs impossible to resume."""
    monkeypatch.setattr(MixtureSampler, "CYCLE", 1 << 16)
    plan = Plan(((4, 1.0), (6, 2.0)), batch_size=8, world_size=1, seed=0)
    assert take(plan.sampler(), 2) == [[1, 2, 6, 7, 5, 8, 0, 9], [4, 6, 7, 3, 4, 1, 9, 5]]


def test_starting_far_into_a_run_takes_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixtureSampler, "CYCLE", 1 << 16)
    plan = Plan(((100_000, 1.0), (3, 0.001)), batch_size=8, world_size=2, seed=0)
    begin = time.perf_counter()
    take(plan.sampler(start_step=10**12), 1)
    assert time.perf_counter() - begin < 2.0


@pytest.mark.parametrize(
    "fault",
    [
        {"batch_size": 0}, {"rank": 2}, {"rank": -1}, {"world_size": 0}, {"seed": -1}, {"start_step": -1},
        {"shares": []}, {"shares": [(0, 1.0)]}, {"shares": [(3, 0.0)]}, {"shares": [(3, float("inf"))]},
    ],
)  # fmt: skip
def test_arguments_out_of_range(fault: dict[str, object]) -> None:
    options = {"shares": [(4, 1.0)], "batch_size": 4, "seed": 0, "world_size": 2, **fault}
    with pytest.raises(ValueError, match=r"out of range|positive weight"):
        MixtureSampler(**options)  # type: ignore[arg-type]
