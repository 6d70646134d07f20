"""Environment seeds: odd for demonstrations, even for evaluations, so that they never coincide."""

from __future__ import annotations

EPISODES_PER_SEED = 1_000_000


def demonstration_seed(seed: int, attempt: int) -> int:
    """Return the odd environment seed of attempt number `attempt` (from 0) of a recording with `seed`."""
    return 2 * _number(seed, attempt) + 1


def evaluation_seed(seed: int, episode: int) -> int:
    """Return the even environment seed of rollout number `episode` (from 0) of an evaluation with `seed`."""
    return 2 * _number(seed, episode)


def _number(seed: int, index: int) -> int:
    if seed < 0 or not 0 <= index < EPISODES_PER_SEED:
        raise ValueError(
            f"seeds must be at least 0 and episode numbers below {EPISODES_PER_SEED}, not {seed} and {index}"
        )
    return seed * EPISODES_PER_SEED + index
