"""Numbers and times of a device that are read without making it wait."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor


class Moment:
    """A point on the timeline of a device, after the work launched so far."""

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Block the host until the device has passed this point."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, other: Moment) -> float:
        """Return the seconds since another moment; the device must have passed both."""
        if self._event is not None and other._event is not None:
            return float(other._event.elapsed_time(self._event)) / 1e3
        return self._host - other._host


class Readback:
    """Scalars on their way from the device to the host, which goes on meanwhile."""

    def __init__(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        self._names = list(values)
        stacked = torch.stack([value.detach().to(device, torch.float64) for value in values.values()])
        self._host = stacked
        if stacked.is_cuda:
            self._host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
        self.moment = Moment(device)

    def read(self) -> dict[str, float]:
        """Return the numbers, after waiting for those that have not arrived."""
        self.moment.wait()
        return dict(zip(self._names, self._host.tolist(), strict=True))
