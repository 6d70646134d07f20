"""The batches of a run, on its device, without end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    return on_device(loader, device)


def stored(rows: Rows, order: Order, device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches that lie ready in a table."""
    drawn = (rows.batch(indices) for indices in order)
    if device.type != "cuda":
        return drawn
    return on_device(
        ({key: x if x.is_cuda else x.pin_memory() for key, x in batch.items()} for batch in drawn), device
    )


def on_device(source: Iterable[Any], device: torch.device) -> Iterator[dict[str, Any]]:
    """The batches on a device; a GPU copies each while it still computes with the ones before."""
    if device.type != "cuda":
        for batch in source:
            yield to_device(batch, device)
        return
    copies = torch.cuda.Stream(device)
    for batch in source:
        with torch.cuda.stream(copies):
            moved = to_device(batch, device)
        computes = torch.cuda.current_stream(device)
        computes.wait_stream(copies)
        for key, value in moved.items():
            if isinstance(value, Tensor) and value is not batch[key]:
                value.record_stream(computes)  # its memory is free for other copies only after that
        yield moved


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
