"""The order of training samples as a pure function of (seed, epoch, rank, step).

    sampler = ResumableSampler(len(dataset), batch_size=32, seed=0, start_step=12_000)
    loader = DataLoader(dataset, batch_sampler=sampler)      # endless; the first batch is that of step 12000

Each epoch is one permutation of all samples, split into global batches; each rank takes its part of every
global batch. So a run that resumes at any step, on any number of ranks with the same global batch, reads the
same samples as an uninterrupted run. The loader belongs to one rank; libraries must not shard it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from ...schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt


class ResumableSampler(Sampler[list[int]]):
    """Endless sampler of the indices of one rank's batch, for each step from `start_step` on.

    Samples that do not fill the last global batch of an epoch are dropped; these differ by epoch. With
    `accumulate`, that many steps in a row are one update of the weights, which no epoch splits: however an
    update is split into steps and ranks, it sees the same samples.
    """

    drop_last = True

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        accumulate: int = 1,
    ) -> None:
        """Sample from `size` samples, `batch_size` for each rank and step.

        Raises:
            DatasetError: There are fewer samples than one update of the weights needs.
            ValueError: Another argument is out of range.
        """
        if (
            min(batch_size, world_size, accumulate) < 1
            or not 0 <= rank < world_size
            or min(seed, start_step) < 0
        ):
            raise ValueError(
                f"batch_size={batch_size}, rank={rank} of {world_size}, seed={seed}, start_step={start_step} or "
                f"accumulate={accumulate} is out of range"
            )
        if size < (needed := batch_size * world_size * accumulate):
            times = f", {accumulate} times" if accumulate > 1 else ""
            raise DatasetError(
                f"{size} samples are too few for a global batch of {needed} ({batch_size} on each of {world_size} "
                f"ranks{times}); lower the batch size{' or `accumulate`' if times else ''}, or add episodes"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.start_step, self.accumulate = (
            rank,
            world_size,
            start_step,
            accumulate,
        )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in one epoch, a multiple of `accumulate`."""
        return self.size // (self.batch_size * self.world_size * self.accumulate) * self.accumulate

    def epoch(self, step: int) -> int:
        """Return the epoch of a global step, from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Return this rank's `batch_size` sample indices for a global step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.size, seed=self.seed, epoch=epoch)
        first = (within * self.world_size + self.rank) * self.batch_size
        indices: list[int] = self._order[first : first + self.batch_size].tolist()
        return indices

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1


class MixtureSampler(Sampler[list[int]]):
    """Endless sampler of several concatenated datasets, each drawn by its weight and in its own epochs.

    The samples of all ranks are one sequence, split into cycles of `CYCLE`. In each cycle every dataset has
    its exact share, in an order drawn from (seed, cycle). The draws of one dataset follow permutations of it,
    so that no sample repeats before all of its dataset have been drawn.
    """

    CYCLE = 1 << 16

    def __init__(
        self,
        shares: Sequence[tuple[int, float]],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        """Sample from datasets with these sizes and weights, `batch_size` for each rank and step.

        Raises:
            ValueError: An argument is out of range.
        """
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or seed < 0 or start_step < 0:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank} of {world_size}, seed={seed} or start_step={start_step} is "
                "out of range"
            )
        if not shares or any(size < 1 or not 0.0 < weight < np.inf for size, weight in shares):
            raise ValueError(f"every dataset needs a sample and a positive weight, found {list(shares)}")
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step
        self._sizes = [size for size, _ in shares]
        self._firsts = np.cumsum([0, *self._sizes[:-1]])
        self._quotas = _quotas([weight for _, weight in shares], self.CYCLE)
        self._cycle, self._owners, self._ranks = -1, np.empty(0, np.int64), np.empty(0, np.int64)
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def batch(self, step: int) -> list[int]:
        """Return this rank's `batch_size` sample indices for a global step."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return [self._sample(position) for position in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def _sample(self, position: int) -> int:
        """Return the sample at a position of the endless sequence."""
        cycle, place = divmod(position, self.CYCLE)
        if cycle != self._cycle:
            self._begin_cycle(cycle)
        owner = int(self._owners[place])
        drawn = cycle * self._quotas[owner] + int(self._ranks[place])
        epoch, within = divmod(drawn, self._sizes[owner])
        if self._orders.get(owner, (-1,))[0] != epoch:
            order = permutation(self._sizes[owner], seed=self.seed, epoch=epoch, part=owner + 1)
            self._orders[owner] = epoch, order
        return int(self._firsts[owner] + self._orders[owner][1][within])

    def _begin_cycle(self, cycle: int) -> None:
        """Begin a cycle: set the dataset of each place, and the number of its earlier places in the cycle."""
        owners = np.repeat(np.arange(len(self._quotas)), self._quotas)
        self._owners = owners[permutation(self.CYCLE, seed=self.seed, epoch=cycle, part=0)]
        self._ranks = np.empty(self.CYCLE, dtype=np.int64)
        for owner, quota in enumerate(self._quotas):
            self._ranks[self._owners == owner] = np.arange(quota)
        self._cycle = cycle


def _quotas(weights: Sequence[float], total: int) -> list[int]:
    """Return positive whole numbers in the proportions of the weights, with sum `total`."""
    exact = np.asarray(weights, dtype=np.float64)
    exact = exact / exact.sum() * total
    quotas = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := total - int(quotas.sum())) != 0:
        behind = (exact - quotas) * np.sign(missing)
        behind[(quotas == 1) & (missing < 0)] = -np.inf
        quotas[np.argmax(behind)] += np.sign(missing)
    return [int(quota) for quota in quotas]


def permutation(size: int, *, seed: int, epoch: int, part: int | None = None) -> npt.NDArray[np.int64]:
    """Return the order of all samples in one epoch, int64 (size,), for each `part` of a mixture.

    Sorts raw Philox output, which NumPy keeps stable across releases, unlike its shuffles.
    """
    entropy = (seed, epoch) if part is None else (seed, epoch, part)
    keys = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(size)
    return np.argsort(keys, kind="stable")
