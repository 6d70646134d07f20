"""Temporal ensembling: the weighted mean of all predictions of one action."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

_STEEPEST = 1e6
"""Decay beyond which one prediction has all the weight."""


class Ensemble:
    """Chunks of an episode that still reach the present, oldest first.

    The action is the mean of their predictions with weights exp(-m i), i = 0 for the oldest (ACT, Zhao et
    al., 2023).
    """

    def __init__(self) -> None:
        self._chunks: deque[Tensor] = deque()

    def add(self, chunk: Tensor, decay: float) -> Tensor:
        """Return the action (A,) of this step, for which `chunk` (H, A) is the newest prediction."""
        if len(self._chunks) == len(chunk):
            self._chunks.popleft()
        self._chunks.append(chunk)
        ages = range(len(self._chunks) - 1, -1, -1)
        actions = torch.stack([held[age] for held, age in zip(self._chunks, ages, strict=True)])
        steep = max(-_STEEPEST, min(decay, _STEEPEST))
        weights = torch.softmax(-steep * torch.arange(len(actions), dtype=torch.float64), 0)
        return (weights[:, None].to(actions) * actions).sum(0)

    def clear(self) -> None:
        """Drop all chunks: a new episode begins."""
        self._chunks.clear()
