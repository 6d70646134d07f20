"""CUDA graphs of a computation, one for each kind of inputs, of which the least recently used is dropped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...components.randomness.generator import Tape
from .. import compat
from ..capture import CaptureError, capturing, error_on_sync

T = TypeVar("T")
Inputs = Mapping[str, Tensor]
Signature = tuple[tuple[str, torch.Size, torch.dtype], ...]


def signature(inputs: Inputs) -> Signature:
    """Return what a graph fixes: keys, shapes and dtypes."""
    return tuple((key, value.shape, value.dtype) for key, value in sorted(inputs.items()))


class Captured(Generic[T]):
    """A computation captured as a CUDA graph, with the inputs that others are copied over."""

    def __init__(
        self, compute: Callable[[dict[str, Tensor]], T], inputs: Inputs, device: torch.device, pool: Any
    ) -> None:
        """Run `compute` on the inputs, and capture it.

        Random numbers are drawn outside of the graph, into buffers that it reads.

        Raises:
            CaptureError: The computation cannot be captured.
        """
        self._device = device
        self._inputs = {key: value.to(device, copy=True) for key, value in inputs.items()}
        self._staged = {
            key: torch.empty_like(value, pin_memory=True)
            for key, value in inputs.items()
            if value.device.type == "cpu"
        }
        self._tape = Tape()
        self._graph = torch.cuda.CUDAGraph()

        def run() -> T:
            return compute(dict(self._inputs))

        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            with self._tape.recording():
                run()
            with self._tape.playing():
                run()
            self._without_waiting(run)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        random = torch.cuda.get_rng_state(device)
        try:
            with capturing(self._graph, pool), self._tape.playing():
                self._result = run()
        except RuntimeError as error:
            compat.recover_from_failed_capture(pool)
            torch.cuda.set_rng_state(random, device)
            raise CaptureError(str(error).splitlines()[0]) from error

    def _without_waiting(self, run: Callable[[], T]) -> None:
        """Run once more, and raise CaptureError if an operation waits for the GPU, as a graph cannot."""
        try:
            with error_on_sync(), self._tape.playing():
                run()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            raise CaptureError("it waits for the GPU, as a graph cannot") from error

    def __call__(self, inputs: Inputs, generator: torch.Generator | None) -> T:
        """Compute for inputs of the captured kind; the result is overwritten by the next call."""
        for key, kept in self._inputs.items():
            given = inputs[key]
            if key in self._staged:
                given = self._staged[key].copy_(given)
            kept.copy_(given, non_blocking=True)
        self._tape.fill(generator)
        self._graph.replay()
        return self._result

    def replay(self) -> T:
        """Compute once more for the inputs and numbers of the last call."""
        self._graph.replay()
        return self._result

    def free(self) -> None:
        """Release the memory of the graph."""
        self._graph.reset()


class Graphs(Generic[T]):
    """Captured computations by the signature of their inputs."""

    def __init__(
        self, capture: Callable[[Inputs], Callable[[Inputs, torch.Generator | None], T]], most: int
    ) -> None:
        """Keep at most so many computations, which `capture` makes."""
        self._capture, self._most = capture, most
        self._held: OrderedDict[Signature, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __call__(self, inputs: Inputs, generator: torch.Generator | None) -> T:
        """Compute for inputs, after a capture if they are of a new kind.

        Raises:
            CaptureError: The computation cannot be captured.
        """
        key = signature(inputs)
        if key not in self._held:
            while len(self._held) >= self._most:
                _, oldest = self._held.popitem(last=False)
                oldest.free()
            self._held[key] = self._capture(inputs)
        self._held.move_to_end(key)
        result: T = self._held[key](inputs, generator)
        return result

    def clear(self) -> None:
        """Drop all computations."""
        for held in self._held.values():
            held.free()
        self._held.clear()


__all__ = ["Captured", "Graphs", "Inputs", "signature"]
