"""The order of training samples as a pure function of (seed, epoch, rank, step).

    sampler = ResumableSampler(len(dataset), batch_size=32, seed=0, start_step=12_000)
    loader = DataLoader(dataset, batch_sampler=sampler)      # endless; the first batch is that of step 12000

Each epoch is one permutation of all samples, cut into global batches; each rank takes its own part of every
global batch. A run resumed at any step, on any number of ranks with the same global batch, so sees what the
uninterrupted run would have seen. THE LOADER ALREADY BELONGS TO ONE RANK: do not let a library shard it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from ...schemas.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


class ResumableSampler(Sampler[list[int]]):
    """Yields, without end, the sample indices of one rank's batch for each step from `start_step` on.

    The samples of an epoch that do not fill a global batch are dropped; which ones differs by epoch.
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
    ) -> None:
        """`size` is the number of samples, `batch_size` that of one rank's batch.

        Raises:
            DatasetError: there are fewer samples than one global batch needs.
            ValueError: another argument is out of range.
        """
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or seed < 0 or start_step < 0:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank} of {world_size}, seed={seed} or start_step={start_step} is "
                "out of range"
            )
        if size < batch_size * world_size:
            raise DatasetError(
                f"{size} samples are fewer than one global batch of {batch_size * world_size} ({batch_size} on each "
                f"of {world_size} ranks). Lower the batch size or add episodes"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """The number of global batches in one epoch."""
        return self.size // (self.batch_size * self.world_size)

    def epoch(self, step: int) -> int:
        """The epoch that a global step belongs to, from 0."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """This rank's sample indices for a global step, `batch_size` of them."""
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


def permutation(size: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of all samples in one epoch, int64 (size,).

    Sorts raw Philox output, whose stream NumPy keeps the same in every release; its shuffles it does not.
    """
    keys = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(size)
    return np.argsort(keys, kind="stable")
