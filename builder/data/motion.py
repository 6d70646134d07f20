"""Detection of motion in states and actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

STILL = 0.005
"""Step of all dimensions, relative to their ranges, up to which a robot stands still."""


def idle_start(actions: npt.NDArray[np.floating[Any]], ranges: npt.NDArray[Any]) -> int:
    """Return the number of steps at the start of an episode in which the action (T, A) stays as it is."""
    moved = (np.abs(np.diff(actions, axis=0)) > STILL * ranges).any(axis=1)
    return int(np.argmax(moved)) if moved.any() else len(actions) - 1


__all__ = ["idle_start"]
