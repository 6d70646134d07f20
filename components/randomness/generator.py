"""Random numbers from a generator on any device, or from a tape that was filled beforehand.

Parts draw all numbers of inference here. A CUDA graph repeats kernels, but not draws from the caller's
generator; so the numbers of a computation are recorded once, then drawn ahead of every replay, in the same
order and therefore with the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Draw = Callable[..., Tensor]
"""`torch.randn` or `torch.rand`."""


class Tape:
    """The random numbers of one computation, in the order of its draws."""

    def __init__(self) -> None:
        self.numbers: list[Tensor] = []
        """The recorded draws, in buffers that stay."""
        self.draws: list[Draw] = []
        """The function behind each of them."""
        self._next: int | None = None

    @classmethod
    def of(cls, numbers: Sequence[Tensor]) -> Tape:
        """Return a tape to play these numbers from."""
        tape = cls()
        tape.numbers = list(numbers)
        return tape

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note every draw of this thread while the context is active."""
        with _active(self):
            yield

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Answer every draw of this thread by the next recorded numbers while the context is active.

        Raises:
            RuntimeError: The computation draws other numbers than the recorded one.
        """
        self._next = 0
        try:
            with _active(self):
                yield
            if self._next != len(self.numbers):
                raise RuntimeError("the computation draws fewer numbers than it did when it was recorded")
        finally:
            self._next = None

    def fill(self, generator: torch.Generator | None = None) -> None:
        """Draw all numbers again, into the same buffers."""
        for draw, numbers in zip(self.draws, self.numbers, strict=True):
            source = numbers.device if generator is None else generator.device
            if source == numbers.device:
                draw(numbers.shape, generator=generator, device=source, out=numbers)
            else:
                numbers.copy_(draw(numbers.shape, generator=generator, device=source))

    def draw(self, draw: Draw, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the next recorded numbers, or record a draw and return numbers of a generator of its own."""
        if self._next is None:
            own = torch.Generator(device).manual_seed(len(self.numbers))
            self.draws.append(draw)
            self.numbers.append(draw(shape, generator=own, device=device))
            return self.numbers[-1]
        position, self._next = self._next, self._next + 1
        if position >= len(self.numbers) or self.numbers[position].shape != shape:
            raise RuntimeError("the computation draws other numbers than it did when it was recorded")
        return self.numbers[position]


_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def _active(tape: Tape) -> Iterator[None]:
    before = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(before)


def normal(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Return standard normal numbers of this shape on a device, float32."""
    return _drawn(torch.randn, shape, device, generator)


def categorical(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return indices (...) drawn by softmax(scores) of the last dim, by the Gumbel-max trick."""
    uniform = _drawn(torch.rand, tuple(scores.shape), scores.device, generator)
    return (scores - (-uniform.clamp_min(1e-20).log()).log()).argmax(-1)


def _drawn(
    draw: Draw, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    if (tape := _tape.get()) is not None:
        return tape.draw(draw, shape, device)
    source = device if generator is None else generator.device
    return draw(shape, generator=generator, device=source).to(device)
