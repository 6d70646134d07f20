"""Properties of the sample order, for any size, batch, number of ranks and step."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policysmith.builder.data.sampler import ResumableSampler, permutation
from policysmith.schemas.errors import DatasetError


@dataclass(frozen=True)
class Plan:
    size: int
    batch_size: int
    world_size: int
    seed: int

    def sampler(self, rank: int = 0, start_step: int = 0) -> ResumableSampler:
        return ResumableSampler(
            self.size,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=self.world_size,
            start_step=start_step,
        )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    batch_size, world_size = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    size = draw(st.integers(batch_size * world_size, 150))
    return Plan(size, batch_size, world_size, draw(st.integers(0, 2**40)))


def take(sampler: ResumableSampler, count: int) -> list[list[int]]:
    return list(itertools.islice(sampler, count))


@given(plans(), st.integers(0, 3))
def test_an_epoch_shows_each_kept_sample_once(plan: Plan, epoch: int) -> None:
    steps = plan.sampler().steps_per_epoch
    seen: list[int] = []
    for rank in range(plan.world_size):
        batches = take(plan.sampler(rank, epoch * steps), steps)
        assert all(len(batch) == plan.batch_size for batch in batches)
        seen += itertools.chain.from_iterable(batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(plan.size))
    assert plan.size - len(seen) < plan.batch_size * plan.world_size


@given(plans(), st.integers(0, 60), st.integers(0, 60))
def test_resuming_continues(plan: Plan, before: int, after: int) -> None:
    rank = plan.world_size - 1
    assert take(plan.sampler(rank, before), after) == take(plan.sampler(rank), before + after)[before:]


@given(plans(), st.integers(0, 60))
def test_every_world_size_sees_the_same_global_batches(plan: Plan, step: int) -> None:
    whole = ResumableSampler(plan.size, batch_size=plan.batch_size * plan.world_size, seed=plan.seed)
    parts = [plan.sampler(rank).batch(step) for rank in range(plan.world_size)]
    assert list(itertools.chain.from_iterable(parts)) == whole.batch(step)


@given(plans(), st.integers(1, 4), st.integers(0, 40))
def test_an_update_in_parts_sees_the_samples_of_one_in_whole(
    plan: Plan, accumulate: int, update: int
) -> None:
    size, place = plan.size * accumulate, {"seed": plan.seed, "world_size": plan.world_size}
    whole = [
        ResumableSampler(size, batch_size=plan.batch_size * accumulate, rank=rank, **place).batch(update)
        for rank in range(plan.world_size)
    ]
    parts = [
        ResumableSampler(size, batch_size=plan.batch_size, accumulate=accumulate, rank=rank, **place).batch(
            update * accumulate + part
        )
        for rank in range(plan.world_size)
        for part in range(accumulate)
    ]
    assert sorted(itertools.chain(*parts)) == sorted(itertools.chain(*whole))


@given(plans())
def test_iterating_twice_starts_over(plan: Plan) -> None:
    sampler = plan.sampler(start_step=3)
    assert take(sampler, 4) == take(sampler, 4)


@given(st.integers(1, 200), st.integers(0, 2**40), st.integers(0, 9))
def test_permutations(size: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(size, seed=seed, epoch=epoch).tolist()) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(permutation(30, seed=seed, epoch=epoch).tolist()) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_all_positions_are_equally_likely() -> None:
    first = [int(permutation(4, seed=0, epoch=epoch)[0]) for epoch in range(2000)]
    assert all(abs(first.count(sample) - 500) < 100 for sample in range(4))


def test_the_order_is_frozen() -> None:
    """Guard the order of samples: a change would make earlier runs impossible to resume."""
    assert permutation(10, seed=0, epoch=0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert permutation(10, seed=7, epoch=3).tolist() == [7, 1, 9, 6, 0, 4, 2, 8, 3, 5]


def test_starting_far_into_a_run_takes_no_replay() -> None:
    begin = time.perf_counter()
    take(ResumableSampler(100_000, batch_size=8, seed=0, start_step=10**12), 1)
    assert time.perf_counter() - begin < 2.0


def test_epoch_of_a_step() -> None:
    sampler = ResumableSampler(10, batch_size=2, seed=0, world_size=2)
    assert sampler.steps_per_epoch == 2
    assert ResumableSampler(10, batch_size=2, seed=0, accumulate=2).steps_per_epoch == 4
    assert [sampler.epoch(step) for step in range(5)] == [0, 0, 1, 1, 2]


def test_too_small_a_dataset() -> None:
    with pytest.raises(
        DatasetError, match=r"7 samples are too few for a global batch of 8 \(4 on each of 2 ranks\); lower"
    ):
        ResumableSampler(7, batch_size=4, seed=0, world_size=2)


@pytest.mark.parametrize(
    "fault",
    [
        {"batch_size": 0},
        {"rank": 2},
        {"rank": -1},
        {"world_size": 0},
        {"seed": -1},
        {"start_step": -1},
        {"accumulate": 0},
    ],
)
def test_arguments_out_of_range(fault: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        ResumableSampler(100, **{"batch_size": 4, "seed": 0, "world_size": 2, **fault})
