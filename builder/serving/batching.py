"""Dynamic batching: observations that arrive together are predicted together, in one thread of their own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...components.real_time import Prefix
from ...schemas.errors import SpecError
from ..policy.acting.session import ChunkSource
from .metrics import Metrics

log = logging.getLogger(__name__)


@dataclass
class _Waiting:
    sample: Mapping[str, Any]
    seed: int | None
    running: Prefix | None
    answer: asyncio.Future[Tensor]


class Batcher:
    """Predicts the chunks of samples that several robots send.

    A sample waits at most `window` seconds for others before its batch begins, unless an earlier batch still
    runs, and not at all if every robot waits already. The sizes of batches are powers of two, so that a
    policy meets few of them. A sample with a seed is predicted alone, so that its result does not depend on
    the others, and those that continue a running chunk are not mixed with those that begin one.

    Args:
        source: Predicts the chunks.
        robots: Returns the number of robots that might send a sample now.
        most: Largest batch.
        window: Longest wait in seconds.
    """

    def __init__(
        self,
        source: ChunkSource,
        metrics: Metrics,
        robots: Callable[[], int],
        *,
        most: int = 8,
        window: float = 0.002,
    ) -> None:
        self._source, self._metrics, self._robots = source, metrics, robots
        self._most, self._window = most, window
        self._waiting: deque[_Waiting] = deque()
        metrics.waiting.set_function(lambda: len(self._waiting))
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "policysmith-predict")

    async def predict(
        self, sample: Mapping[str, Any], seed: int | None = None, running: Prefix | None = None
    ) -> Tensor:
        """Return the chunk (H, A) of a sample with values (T, ...), which continues a running one if it is given.

        Raises:
            SpecError: The policy refuses the sample.
        """
        waiting = _Waiting(sample, seed, running, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            return await waiting.answer
        finally:
            waiting.answer.cancel()  # for a robot that left meanwhile

    async def warm_up(self, samples: Sequence[Mapping[str, Any]], running: Prefix | None = None) -> Tensor:
        """Predict a batch in the thread that will predict all others, and return its chunks (B, H, A)."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._predict, samples, None, running)

    async def run(self) -> None:
        """Answer samples until canceled."""
        try:
            while True:
                await self._some_wait()
                batch = self._next_batch()
                if batch:
                    await self._answer(batch)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _some_wait(self) -> None:
        """Return once a batch is full, every robot waits, or the first sample has waited long enough."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        deadline = time.perf_counter() + self._window
        while len(self._waiting) < min(self._most, self._robots()):
            remaining = deadline - time.perf_counter()
            if remaining <= 0.0:
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(remaining):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Waiting]:
        """Return the samples of the next batch, without those whose robots left."""
        self._waiting = deque(one for one in self._waiting if not one.answer.done())
        if not self._waiting:
            return []
        if self._waiting[0].seed is not None:
            return [self._waiting.popleft()]
        continues = self._waiting[0].running is not None
        alike = itertools.takewhile(
            lambda one: one.seed is None and (one.running is not None) is continues, self._waiting
        )
        size = 1 << (min(len(list(alike)), self._most).bit_length() - 1)
        return [self._waiting.popleft() for _ in range(size)]

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        """Predict a batch; if that fails, each sample alone, so that one cannot fail the others."""
        try:
            chunks = await self._in_thread(batch)
        except Exception as error:  # noqa: BLE001  # the server lives on, and the robot is told
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for one, chunk in zip(batch, chunks, strict=True):
            if not one.answer.done():
                one.answer.set_result(chunk)

    async def _in_thread(self, batch: Sequence[_Waiting]) -> Tensor:
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        samples, prefixes = [one.sample for one in batch], [one.running for one in batch if one.running]
        running = Prefix.joined(prefixes) if prefixes else None
        chunks = await loop.run_in_executor(self._thread, self._predict, samples, batch[0].seed, running)
        self._metrics.inference_seconds.observe(time.perf_counter() - start)
        self._metrics.batch_size.observe(len(samples))
        return chunks

    @torch.no_grad()
    def _predict(
        self, samples: Sequence[Mapping[str, Any]], seed: int | None, running: Prefix | None
    ) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        try:
            if running is not None:
                return self._source.continue_chunks(samples, running, generator)
            return self._source.predict(samples, generator)
        except SpecError:
            raise
        except Exception:
            log.exception("a batch of %d failed", len(samples))
            raise


__all__ = ["Batcher"]
