"""What processes that train together tell each other, where no wrapper of the policy does it for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ....schemas.errors import TrainingError


class Peers:
    """All processes of a run. All of them call the same methods in the same order; for a single one these do nothing."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._count, self._device = count, device
        self._shapes: list[torch.Size] | None = None

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self._count > 1

    def agree(self, verdict: bool) -> bool:
        """Whether it is true for all."""
        return self.mean(float(verdict))[0] == 1.0

    def mean(self, *numbers: float) -> list[float]:
        """The mean of each number, the same for all to the last bit; waits for the device."""
        if not self.several:
            return list(numbers)
        together = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(together)
        return (together / self._count).tolist()

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.several:
            dist.all_reduce(numbers)
        return numbers

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Each gradient becomes the sum of that of all processes, in place.

        Raises TrainingError where weights have gradients that had none the first time, or the other way round.
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
            with dist._coalescing_manager():  # type: ignore[attr-defined]
                for gradient in gradients:
                    if gradient.dtype == dtype:
                        dist.all_reduce(gradient)

    @torch.no_grad()
    def share(self, buffers: Iterable[Tensor]) -> None:
        """Let all have the values of the first process."""
        if not self.several:
            return
        alike: dict[torch.dtype, list[Tensor]] = {}
        for buffer in buffers:
            if buffer.numel():
                alike.setdefault(buffer.dtype, []).append(buffer)
        for some in alike.values():
            together = torch.cat([buffer.flatten() for buffer in some])
            dist.broadcast(together, 0)
            parts = together.split([buffer.numel() for buffer in some])
            torch._foreach_copy_(
                some, [part.view_as(buffer) for buffer, part in zip(some, parts, strict=True)]
            )
