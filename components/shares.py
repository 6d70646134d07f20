"""Shares of batches in a step that several of them make, so that their mean loss is the loss of all samples together.

A step may be cut into the batches of several processes, and into several in a row. Each batch loses a mean over its own
values, of which it has more or fewer than others: steps after the end of an episode do not count. Before its passes a
batch is therefore told its share, one factor for each kind of value that its loss is a mean over:

    share = values of the batch * batches of the step / values of the step

The mean of `share * loss` over all batches is then the mean over all values, and so are gradients and logged terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

_SHARE = "loss.share."
"""Prefix of the keys of a batch under which its shares stand, as scalars."""
Shares = Mapping[str, Tensor]
"""Factors on the means of a loss, by the kind of value that each is over."""
WHOLE: Shares = MappingProxyType({})
"""The shares of a batch that makes a step alone."""


def shares_in(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The shares that a batch was told, by kind of value; none for a batch that makes a step alone."""
    return {key.removeprefix(_SHARE): value for key, value in batch.items() if key.startswith(_SHARE)}


def share_of(batch: Mapping[str, Any], kind: str = "values") -> Tensor | float:
    """The factor on a mean over one kind of value; 1 for a batch that makes a step alone."""
    found: Tensor | float = batch.get(_SHARE + kind, 1.0)
    return found


def without_shares(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch as it was before it was told its shares."""
    return {key: value for key, value in batch.items() if not key.startswith(_SHARE)}


def with_shares(batch: Mapping[str, Any], shares: Shares) -> dict[str, Any]:
    """The batch, told its shares."""
    return {**batch, **{_SHARE + kind: share for kind, share in shares.items()}}


def tabled(counts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Counts of several batches, by kind of value, as a table (batches, kinds), float64."""
    return torch.stack([torch.stack([count.double() for count in each.values()]) for each in counts])


__all__ = ["WHOLE", "Shares", "share_of", "shares_in", "tabled", "with_shares", "without_shares"]
