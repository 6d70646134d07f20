"""Losses on held-out episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ...components.shares import stack_counts, with_shares
from ..policy import BasePolicyModel
from .batches import to_device
from .distributed.collectives import Peers
from .distributed.sharding import reshard
from .job import Job
from .optim.ema import WeightAverage
from .randomness import mix


class Validation:
    """All held-out samples; each of n processes takes every n-th batch."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        assert job.validation is not None
        self._dataset, self._collate = job.validation, job.collate
        self._section, self._accelerator = job.section, accelerator
        self._peers = Peers(accelerator.num_processes, accelerator.device)
        self._size: int = len(job.validation)  # type: ignore[arg-type]
        self._kinds: list[str] = []
        self._total: Tensor | None = None
        """Values that count in all samples, by kind, once counted."""

    @torch.no_grad()
    def losses(self, policy: BasePolicyModel, average: WeightAverage | None) -> dict[str, float]:
        """Return the means over all values that count, with the saved weights, as `validation/<loss>`.

        All processes call it. Without counts, the means are over samples.
        """
        device = self._accelerator.device
        self._peers.share(policy.buffers())
        policy.eval()
        if self._total is None:
            self._count(policy)
        assert self._total is not None
        sums: dict[str, Tensor] = {}
        with average.applied() if average is not None else nullcontext(), self._accelerator.autocast():
            for index, size, batch in self._batches():
                torch.manual_seed(mix(self._section.seed, 0, index, 0))
                weight = size / self._size
                if self._kinds:
                    counts = stack_counts([policy.loss_counts(batch)])[0]
                    shares = (counts / self._total.clamp_min(1.0)).float() * (size > 0)
                    batch, weight = with_shares(batch, dict(zip(self._kinds, shares, strict=True))), 1.0
                for name, value in policy(batch).items():
                    if value.ndim == 0:
                        sums[name] = sums.get(name, torch.zeros((), device=device)) + value.double() * weight
            reshard(policy)
        policy.train()
        if not sums:
            return {}
        total = self._peers.total(torch.stack(list(sums.values()))).tolist()
        return {f"validation/{name}": value for name, value in zip(sums, total, strict=True)}

    def _count(self, policy: BasePolicyModel) -> None:
        tables = []
        for _, size, batch in self._batches():
            counts: Mapping[str, Tensor] = policy.loss_counts(batch)
            self._kinds = list(counts)
            if not counts:
                break
            tables.append(stack_counts([counts])[0] * (size > 0))
        self._total = self._peers.total(torch.stack(tables).sum(0)) if tables else torch.zeros(0)

    def _batches(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield place, size and content of this process's batches; all processes have as many, so the last size may be 0."""
        step, world = self._section.batch_size, self._accelerator.num_processes
        everything = [
            list(range(first, min(first + step, self._size))) for first in range(0, self._size, step)
        ]
        own = list(enumerate(everything))[self._accelerator.process_index :: world]
        lacking = len(own) < -(-len(everything) // world)
        own += [(0, everything[0])] * lacking
        loader = DataLoader(
            self._dataset, batch_sampler=[indices for _, indices in own], collate_fn=self._collate
        )
        for position, ((place, indices), batch) in enumerate(zip(own, loader, strict=True)):
            size = 0 if lacking and position == len(own) - 1 else len(indices)
            yield place, size, to_device(batch, self._accelerator.device)
