"""Shares of batches in a common step, which make their mean loss the loss over all samples.

A step may consist of batches of several processes and of several in a row. The loss of a batch is a mean over
its own values, whose number varies, because steps after the end of an episode are padding. Each batch
therefore receives a factor for each kind of value in its loss:

    share = values of the batch * batches of the step / values of the step

The mean of `share * loss` over all batches is the mean over all values, and the same holds for gradients and
logged terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

_SHARE = "loss.share."
"""Prefix of the keys of a batch that hold its shares, as scalars."""
Shares = Mapping[str, Tensor]
"""Factors of the means in a loss, by kind of value."""
WHOLE: Shares = MappingProxyType({})
"""Shares of a batch that makes a step alone."""


def shares_in(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the shares of a batch, by kind of value; none if it makes a step alone."""
    return {key.removeprefix(_SHARE): value for key, value in batch.items() if key.startswith(_SHARE)}


def share_of(batch: Mapping[str, Any], kind: str = "values") -> Tensor | float:
    """Return the factor of a mean over one kind of value; 1 for a batch that makes a step alone."""
    found: Tensor | float = batch.get(_SHARE + kind, 1.0)
    return found


def without_shares(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch without its shares."""
    return {key: value for key, value in batch.items() if not key.startswith(_SHARE)}


def with_shares(batch: Mapping[str, Any], shares: Shares) -> dict[str, Any]:
    """Return the batch with shares."""
    return {**batch, **{_SHARE + kind: share for kind, share in shares.items()}}


def stack_counts(counts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the counts of several batches, by kind of value, as a table (batches, kinds), float64."""
    return torch.stack([torch.stack([count.double() for count in each.values()]) for each in counts])


__all__ = ["WHOLE", "Shares", "share_of", "shares_in", "stack_counts", "with_shares", "without_shares"]
