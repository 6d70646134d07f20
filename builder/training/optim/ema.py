"""Exponential moving average of the trainable weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..distributed.sharding import put


class WeightAverage:
    """avg <- d avg + (1 - d) w after every step, in fp32; d rises as (1 + step) / (10 + step) up to `decay`.

    Frozen parameters are not copied; buffers, such as batch-norm statistics, are those of the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(trainable)
        self._weights: list[Tensor] = list(trainable.values())
        self._average = [weight.detach().float().clone() for weight in self._weights]
        self._of = dict(zip(self._weights, self._average, strict=True))

    @property
    def names(self) -> list[str]:
        """Names of the weights that are averaged."""
        return list(self._names)

    def of(self, weight: Tensor) -> Tensor:
        """The average of a weight, for those that take in the weights themselves."""
        return self._of[weight]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, [weight.float() for weight in self._weights], 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        own = self.weights()
        self._write(self._average)
        try:
            yield
        finally:
            self._write([own[name] for name in self._names])

    def apply(self) -> None:
        """Give the model the averaged weights for good."""
        self._write(self._average)

    def weights(self) -> dict[str, Tensor]:
        """Copies of the model's own weights."""
        return {n: w.detach().clone() for n, w in zip(self._names, self._weights, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self._average, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, average in zip(self._names, self._average, strict=True):
            put(average, state[name])

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)
