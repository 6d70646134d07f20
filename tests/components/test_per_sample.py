"""Random numbers of samples: the law of each kind, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from policysmith.components.randomness.per_sample import SAMPLE_KEY, Draws

MANY = torch.arange(20_000)
KINDS: dict[str, Callable[[Draws], Tensor]] = {
    "uniform": lambda draws: draws.uniform(3, -1.0, 2.0),
    "integers": lambda draws: draws.integers(-3, 9, 5),
    "normal": lambda draws: draws.normal(2, 3),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def draws(keys: Tensor, stream: str = "a") -> Draws:
    return Draws({SAMPLE_KEY: keys}, torch.empty(len(keys), 1, device=keys.device), stream)


@kinds
@given(keys=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), data=st.data())
def test_numbers_of_a_key_do_not_depend_on_the_others(
    kind: str, keys: list[int], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(keys) - 1), min_size=1))
    given = torch.tensor(keys)
    assert torch.equal(KINDS[kind](draws(given))[chosen], KINDS[kind](draws(given[chosen])))


@kinds
def test_keys_streams_and_turns_differ(kind: str) -> None:
    draw, one = KINDS[kind], draws(MANY)
    found = [draw(one), draw(one), draw(draws(MANY, "b")), draw(draws(MANY + len(MANY)))]
    flat = torch.stack([numbers.double().flatten() for numbers in found])
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 4.0 / flat.shape[1] ** 0.5
    within = torch.corrcoef(found[0].double().flatten(1).T) - torch.eye(found[0][0].numel())
    assert within.abs().max() < 5.0 / len(MANY) ** 0.5


def test_uniform_numbers_are_even() -> None:
    numbers = draws(MANY).uniform(3, -1.0, 2.0)
    assert (numbers.shape, numbers.dtype) == ((len(MANY), 3), torch.float32)
    assert (numbers.min() >= -1.0) & (numbers.max() <= 2.0)
    assert all(stats.kstest(column, stats.uniform(-1.0, 3.0).cdf).pvalue > 1e-3 for column in numbers.T)
    unit = draws(MANY).uniform(7)
    assert (unit.min() >= 0.0) & (unit.max() < 1.0)


def test_integers_are_even_and_reach_both_ends() -> None:
    numbers = draws(MANY).integers(-3, 9, 5)
    assert (numbers.shape, numbers.dtype) == ((len(MANY), 5), torch.int64)
    for column in numbers.T:
        values, counts = column.unique(return_counts=True)
        assert values.tolist() == list(range(-3, 9))
        assert stats.chisquare(counts).pvalue > 1e-3
    assert (draws(MANY).integers(4, 5, 1) == 4).all()


def test_normal_numbers_are_normal() -> None:
    numbers = draws(MANY).normal(3, 3)
    assert (numbers.shape, numbers.dtype) == ((len(MANY), 3, 3), torch.float32)
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in numbers.flatten(1).T)


def test_without_keys_they_follow_from_torchs_generator() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Draws({}, torch.empty(5, 2), "a").uniform(4)

    assert torch.equal(drawn(1), drawn(1))
    assert len({*drawn(1).flatten().tolist(), *drawn(2).flatten().tolist()}) == 40
    state = torch.get_rng_state()
    Draws({}, torch.empty(5, 2), "a")
    assert torch.equal(torch.get_rng_state(), state), "draws before a number is asked for"


@pytest.mark.gpu
@kinds
def test_a_gpu_draws_the_same_bits_without_waiting(kind: str) -> None:
    keys = MANY * 0x1234567
    given = keys.cuda()
    KINDS[kind](draws(given))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = KINDS[kind](draws(given))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = KINDS[kind](draws(keys))
    if kind == "normal":
        torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=1e-6)
    else:
        assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_a_graph_draws_by_the_keys_that_are_in_the_batch() -> None:
    keys = MANY.cuda()
    batch = keys.clone()
    KINDS["uniform"](draws(batch))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = KINDS["uniform"](draws(batch))
    for step in (1, 2):
        batch.copy_(keys + step)
        graph.replay()
        assert torch.equal(found, KINDS["uniform"](draws(keys + step)))
