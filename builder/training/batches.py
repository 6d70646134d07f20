"""The batches of a run, on its device, without end."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ...components.randomness.per_sample import SAMPLE_KEY
from ..data.sampler import MixtureSampler, ResumableSampler
from .randomness import sample_keys

Collate = Callable[[Sequence[Any]], Any]
Order = ResumableSampler | MixtureSampler
Batches = Generator[dict[str, Any], None, None]
_AHEAD = 2
"""Batches that each worker prepares before they are needed."""


def loaded_batches(
    dataset: Dataset[Any],
    order: Order,
    collate: Collate,
    *,
    accumulate: int,
    keyed: bool,
    workers: int,
    device: torch.device,
) -> Batches:
    """Yield batches that a loader makes of samples, with their keys.

    Every `accumulate` batches in a row are of one step. A `keyed` dataset is indexed by `(index, key)` and
    uses the keys itself, so its batches do not hold them. Its transforms are Python, so its workers are
    processes. Others are threads: reading and decoding leave the interpreter to them, and nothing is copied
    between processes.
    """
    if workers and not keyed:
        return on_device(_in_threads(dataset, order, collate, accumulate, workers, device), device)
    sampler = _KeyedSampler(order, accumulate, keyed)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_outlive_signals,
    )
    return on_device(
        loader if keyed else (_with_keys(sampler.keys.popleft(), batch, device) for batch in loader), device
    )


def _in_threads(
    dataset: Dataset[Any],
    order: Order,
    collate: Collate,
    accumulate: int,
    workers: int,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Yield the batches of an order, each made by one of several threads, with their keys."""
    leaving = Event()
    one_at_a_time = Lock()  # collators, and the tokenizers in them, are not made for several threads

    def load(indices: Sequence[int], keys: Tensor) -> dict[str, Any]:
        samples = []
        for index in indices:
            if leaving.is_set():
                raise CancelledError
            samples.append(dataset[index])
        with one_at_a_time:
            batch = collate(samples)
        if device.type == "cuda":
            batch = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
        return _with_keys(keys, batch, device)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    pending: deque[Future[dict[str, Any]]] = deque()
    try:
        for indices, keys in keyed_indices(order, accumulate):
            pending.append(pool.submit(load, indices, keys))
            if len(pending) > _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        leaving.set()
        pool.shutdown(cancel_futures=True)


def _outlive_signals(worker: int) -> None:
    """Ignore signals to the whole process group, so that the run can take its last step and save.

    A worker ends with the run. If it cannot, and is terminated, it still ends after a minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60) and None)


def stored_batches(
    read: Callable[[Sequence[int]], dict[str, Tensor]], order: Order, device: torch.device, *, accumulate: int
) -> Batches:
    """Yield batches that `read` takes from a table by the indices of samples, with their keys."""
    batches = (_with_keys(keys, read(indices), device) for indices, keys in keyed_indices(order, accumulate))
    if device.type != "cuda":
        return batches
    return on_device(
        ({key: x if x.is_cuda else x.pin_memory() for key, x in batch.items()} for batch in batches), device
    )


def keyed_indices(order: Order, accumulate: int = 1) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the indices and keys (B,) of the samples of each batch; keys depend on the step, not on how it is cut."""
    for position, indices in enumerate(order, order.start_step):
        yield indices, sample_keys(order.seed, position // accumulate, indices)


def on_device(source: Iterable[Any], device: torch.device) -> Batches:
    """Yield the batches on a device; a GPU copies each while it still computes with the one before."""
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
                value.record_stream(computes)  # only after that is its memory free for other copies
        yield moved


def to_device(batch: Any, device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on a device, copied without waiting."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


class _KeyedSampler(Sampler[Any]):
    """The batches of an order, as `(index, key)` pairs if `keyed`; otherwise their keys are queued in `keys`."""

    def __init__(self, order: Order, accumulate: int, keyed: bool) -> None:
        self._order, self._accumulate, self._keyed = order, accumulate, keyed
        self.keys: deque[Tensor] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        for indices, keys in keyed_indices(self._order, self._accumulate):
            if self._keyed:
                yield list(zip(indices, keys.tolist(), strict=True))
            else:
                self.keys.append(keys)
                yield indices


def _with_keys(keys: Tensor, batch: Any, device: torch.device) -> dict[str, Any]:
    return {**batch, SAMPLE_KEY: keys.pin_memory() if device.type == "cuda" else keys}
