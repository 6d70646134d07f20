"""The guard against losses, gradients and buffers that are not finite, and requests that processes share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....schemas.errors import TrainingError
from ..optim.adamw import AdamW


class Health:
    """Flags on the device: a loss or gradient that is not finite, and requests of processes.

    The first stops all updates. Processes combine their flags with every update, so that all stop after the
    same step.
    """

    def __init__(self, optimizer: AdamW, device: torch.device, step: int = 0) -> None:
        """`step` is the number of updates made before."""
        self._flags = torch.zeros(3, device=device)
        self.bad = self._flags[0]
        """0 until the first step that is not finite, on the device."""
        self.requests = self._flags[1:]
        """The signal that a process received, and whether a checkpoint is due, on the device."""
        self._requested = (0, False)
        self._first_step = step
        self._good_steps = torch.zeros((), dtype=torch.int64, device=device)
        optimizer.found_inf = self.bad

    def check(self, value: Tensor) -> None:
        """Look at a loss, or at the norm of the gradients, before the update that follows from it."""
        self.bad.copy_(torch.maximum(self.bad, (~torch.isfinite(value.detach())).float()))

    def request(self, *, stop: int, save: bool) -> None:
        """Ask all processes to stop for a signal, or to save, from when they next agree."""
        if (stop, save) != self._requested:
            self._requested = stop, save
            self.requests[0].fill_(stop)
            self.requests[1].fill_(float(save))

    def clear_save_request(self) -> None:
        """Note that the checkpoint that was due is written."""
        self._requested = self._requested[0], False
        self.requests[1].zero_()

    def agree(self) -> None:
        """Combine the flags of all processes."""
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._flags, torch.distributed.ReduceOp.MAX)

    def count_step(self) -> None:
        """Count a step, if all was finite so far."""
        self._good_steps.add_(self.bad == 0)

    def first_bad_step(self) -> int | None:
        """Return the step that was not finite, None if there is none; waits for the device."""
        return self._first_step + int(self._good_steps) if int(self.bad) else None


def broken_buffers(policy: nn.Module) -> list[str]:
    """Return the names of buffers with values that are not finite; waits for the device."""
    return [name for name, buffer in policy.named_buffers() if not buffer.isfinite().all()]


def not_finite(step: int, samples: list[int], kept: str) -> TrainingError:
    """Return the error for a loss or gradient that is not finite; `kept` says what is left of the run."""
    some = f"{samples[:8]}{', ...' if len(samples) > 8 else ''}"
    return TrainingError(
        f"the loss or its gradient is not finite at step {step} (samples {some}); {kept}. Look at these samples, or "
        "start a new run with a lower `training.optimizer.lr`, with `training.schedule.warmup`, or with "
        "`training.precision: fp32`"
    )
