"""Which environment seeds are for demonstrations and which for judging: odd and even, so never the same."""

from __future__ import annotations

EPISODES_PER_SEED = 1_000_000


def demonstration_seed(seed: int, attempt: int) -> int:
    """The environment seed of the `attempt`-th try (from 0) of a recording made with `seed`; odd."""
    return 2 * _number(seed, attempt) + 1


def evaluation_seed(seed: int, episode: int) -> int:
    """The environment seed of the `episode`-th rollout (from 0) of an evaluation made with `seed`; even."""
    return 2 * _number(seed, episode)


def _number(seed: int, index: int) -> int:
    if seed < 0 or not 0 <= index < EPISODES_PER_SEED:
        raise ValueError(
            f"a seed is 0 or more and an episode's number below {EPISODES_PER_SEED}, not {seed} and {index}"
        )
    return seed * EPISODES_PER_SEED + index
