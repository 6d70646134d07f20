"""Wilson's interval against published values and its own defining equation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policysmith.builder.evaluation.closed_loop import wilson

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(50, 50, 0.9287, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (1, 10, 0.0179, 0.4042)],
)
def test_known_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_ends_are_where_the_score_test_just_rejects(outcome: tuple[int, int]) -> None:
    successes, trials = outcome
    rate = successes / trials
    low, high = wilson(successes, trials)
    assert 0.0 <= low <= rate <= high <= 1.0
    for end in (low, high):
        if 0.0 < end < 1.0:
            assert trials * (rate - end) ** 2 == pytest.approx(Z**2 * end * (1.0 - end), rel=1e-6)


def test_no_trials_say_nothing_and_impossible_counts_are_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)
