"""The batches of a run, on its device, without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.rows import Rows
from ..data.sampler import MixtureSampler, ResumableSampler

Collate = Callable[[Sequence[Any]], Any]
Order = ResumableSampler | MixtureSampler


def loaded(
    dataset: Dataset[Any], order: Order, collate: Collate, *, keyed: bool, workers: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Batches that a loader makes of samples; a `keyed` dataset is indexed by `(index, step)`."""
    loader = DataLoader(
        dataset,
        batch_sampler=_Keyed(order) if keyed else order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    for batch in loader:
        yield to_device(batch, device)


def stored(rows: Rows, order: Order, device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches that lie ready in a table."""
    for indices in order:
        batch = rows.batch(indices)
        if device.type == "cuda":
            batch = {key: value if value.is_cuda else value.pin_memory() for key, value in batch.items()}
        yield to_device(batch, device)


def to_device(batch: Any, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device, copied without waiting."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


class _Keyed(Sampler[Any]):
    """The sampler's batches as `(index, step)` pairs."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step, indices in enumerate(self._order, self._order.start_step):
            yield [(index, step) for index in indices]
