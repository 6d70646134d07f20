from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policysmith.builder.data.splits import split_episodes
from policysmith.schemas.errors import DatasetError

episode_sets = st.lists(st.integers(0, 10_000), min_size=2, max_size=60, unique=True)
fractions = st.floats(0.001, 0.999)


@given(episode_sets, fractions, st.integers(0, 2**32), st.randoms())
def test_both_sides_are_filled_disjoint_and_whole(
    episodes: list[int], fraction: float, seed: int, random
) -> None:  # type: ignore[no-untyped-def]
    train, validation = split_episodes(episodes, validation_fraction=fraction, seed=seed)
    assert train
    assert validation
    assert sorted(train + validation) == sorted(episodes)
    assert abs(len(validation) - fraction * len(episodes)) <= 1
    random.shuffle(episodes)
    assert split_episodes(episodes, validation_fraction=fraction, seed=seed) == (train, validation)


def test_the_outcome_is_frozen() -> None:
    """Guard the split: a change would move episodes between training and validation of existing runs."""
    assert split_episodes(range(10), validation_fraction=0.2, seed=0)[1] == (4, 7)


def test_seeds_differ() -> None:
    assert len({split_episodes(range(50), validation_fraction=0.2, seed=seed) for seed in range(10)}) == 10


def test_no_fraction_means_no_validation() -> None:
    assert split_episodes([3, 1], validation_fraction=0.0, seed=0) == ((1, 3), ())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(DatasetError, match="at least 0 and less than 1"):
        split_episodes(range(5), validation_fraction=fraction, seed=0)


def test_too_few_episodes() -> None:
    with pytest.raises(
        DatasetError, match=r"1 episodes cannot be split.*add episodes or set the validation fraction"
    ):
        split_episodes([4], validation_fraction=0.1, seed=0)
    with pytest.raises(DatasetError, match="occurs twice"):
        split_episodes([4, 4], validation_fraction=0.1, seed=0)
