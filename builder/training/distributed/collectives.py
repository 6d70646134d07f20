"""Collective operations of processes that train together, beside those of a wrapper of the policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ....schemas.errors import TrainingError
from ... import compat


class Peers:
    """All processes of a run.

    All call the same methods in the same order; for a single process these do nothing.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._count, self._device = count, device
        self._shapes: list[torch.Size] | None = None

    @property
    def several(self) -> bool:
        """True for more than one process."""
        return self._count > 1

    def agree(self, verdict: bool) -> bool:
        """Return whether the verdict is true in all processes."""
        return self.mean(float(verdict))[0] == 1.0

    def mean(self, *numbers: float) -> list[float]:
        """Return the mean of each number over processes, equal in all to the last bit; waits for the device."""
        if not self.several:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(together)
        return (together / self._count).tolist()

    def total(self, numbers: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.several:
            dist.all_reduce(numbers)
        return numbers

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Sum each gradient over all processes, in place.

        Raises:
            TrainingError: if other weights have gradients than the first time.
        """
        if not self.several:
            return
        shapes = [gradient.shape for gradient in gradients]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise TrainingError(
                "a batch trains other weights than those before it, so processes cannot add up their gradients; let every "
                "part take part in every loss, or set `training.cuda_graph: off`"
            )
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            with compat.coalesced():
                for gradient in gradients:
                    if gradient.dtype == dtype:
                        dist.all_reduce(gradient)

    @torch.no_grad()
    def share(self, buffers: Iterable[Tensor]) -> None:
        """Copy the values of the first process to all."""
        if not self.several:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in buffers:
            if buffer.numel():
                by_dtype.setdefault(buffer.dtype, []).append(buffer)
        for group in by_dtype.values():
            together = torch.cat([buffer.flatten() for buffer in group])
            dist.broadcast(together, 0)
            parts = together.split([buffer.numel() for buffer in group])
            values = [part.view_as(buffer) for buffer, part in zip(group, parts, strict=True)]
            compat.foreach_copy_(group, values)
