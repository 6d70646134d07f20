"""The batches of a run, on its device, without end."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ...components.randomness.per_sample import SAMPLE_KEY
from ..data.sampler import MixtureSampler, ResumableSampler
from .frozen.table import Rows
from .seeds import sample_keys

Collate = Callable[[Sequence[Any]], Any]
Order = ResumableSampler | MixtureSampler


def loaded(
    dataset: Dataset[Any],
    order: Order,
    collate: Collate,
    *,
    accumulate: int,
    keyed: bool,
    workers: int,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Batches that a loader makes of samples, with their keys; a `keyed` dataset, indexed by `(index, key)`, has used them.

    Each `accumulate` batches in a row are of one step.
    """
    drawn = _Drawn(order, accumulate, keyed)
    loader = DataLoader(
        dataset,
        batch_sampler=drawn,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_outlive_signals,
    )
    return on_device(
        loader if keyed else (_with(drawn.keys.popleft(), batch, device) for batch in loader), device
    )


def _outlive_signals(worker: int) -> None:
    """Go on under signals to the whole process group, so that the run can take its last step and save.

    A worker ends with the run. Where it cannot, and is told to, it still ends after a minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60) and None)


def stored(rows: Rows, order: Order, device: torch.device, *, accumulate: int) -> Iterator[dict[str, Any]]:
    """Batches that lie ready in a table, with the keys of their samples."""
    drawn = (_with(keys, rows.batch(indices), device) for indices, keys in with_keys(order, accumulate))
    if device.type != "cuda":
        return drawn
    return on_device(
        ({key: x if x.is_cuda else x.pin_memory() for key, x in batch.items()} for batch in drawn), device
    )


def with_keys(order: Order, accumulate: int = 1) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and keys (B,) of the samples of each batch. The keys of a step do not tell how it is cut into batches."""
    for position, indices in enumerate(order, order.start_step):
        yield indices, sample_keys(order.seed, position // accumulate, indices)


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


class _Drawn(Sampler[Any]):
    """The order's batches, whose keys wait for a loader to be done with them; `keyed`, they are `(index, key)` pairs."""

    def __init__(self, order: Order, accumulate: int, keyed: bool) -> None:
        self._order, self._accumulate, self._keyed = order, accumulate, keyed
        self.keys: deque[Tensor] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        for indices, keys in with_keys(self._order, self._accumulate):
            if self._keyed:
                yield list(zip(indices, keys.tolist(), strict=True))
            else:
                self.keys.append(keys)
                yield indices


def _with(keys: Tensor, batch: Any, device: torch.device) -> dict[str, Any]:
    return {**batch, SAMPLE_KEY: keys.pin_memory() if device.type == "cuda" else keys}
