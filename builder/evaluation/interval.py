"""How sure a success rate is."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success probability (Wilson, 1927), both ends in [0, 1]; (0, 1) without trials.

    Unlike the normal approximation it never has width zero: 50 of 50 gives 0.93 to 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate, share = successes / trials, z * z / trials
    centre = (rate + share / 2.0) / (1.0 + share)
    half = z * math.sqrt(rate * (1.0 - rate) / trials + share / (4.0 * trials)) / (1.0 + share)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
