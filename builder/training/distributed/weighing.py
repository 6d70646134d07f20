"""Weights of the batches that make one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ....components.shares import stack_counts, with_shares
from ...policy import BasePolicyModel

Batches = Sequence[Mapping[str, Any]]


class Weighing:
    """Shares for the batches of a step, `accumulate` of them in each process; a batch that is a whole step needs none."""

    def __init__(
        self, policy: BasePolicyModel, accumulate: int, processes: int, note: Callable[[str], None]
    ) -> None:
        self._policy, self._processes, self._note = policy, processes, note
        self._parts = accumulate * processes
        self._equal = self._parts == 1
        """True if all batches have the same weight."""

    def __call__(self, batches: Batches) -> Batches:
        """Return the batches of the next step with their shares.

        All processes call it; nothing waits for the device.
        """
        if self._equal:
            return batches
        counts = [self._policy.loss_counts(batch) for batch in batches]
        if not counts[0]:
            self._equal = True
            self._note(
                f"the {self._parts} batches of a step weigh alike, however many values count in each: "
                f"{'the head' if hasattr(self._policy, 'head') else type(self._policy).__name__} does not count them"
            )
            return batches
        table = stack_counts(counts)
        total = table.sum(0)
        if self._processes > 1:
            torch.distributed.all_reduce(total)
        shares = (table * self._parts / total.clamp_min(1.0)).float()
        return [
            with_shares(batch, dict(zip(counts[0], row, strict=True)))
            for batch, row in zip(batches, shares, strict=True)
        ]
