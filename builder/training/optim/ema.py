"""Exponential moving average of the trainable weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ... import compat
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
        self._averages = [weight.detach().float().clone() for weight in self._weights]
        self._by_weight = dict(zip(self._weights, self._averages, strict=True))

    @property
    def names(self) -> list[str]:
        """Names of the averaged weights."""
        return list(self._names)

    def of(self, weight: Tensor) -> Tensor:
        """Return the average of a weight, for an optimizer that updates it."""
        return self._by_weight[weight]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after `step` updates."""
        decay = min(self.decay, (1 + step) / (10 + step))
        compat.foreach_lerp_(self._averages, [weight.float() for weight in self._weights], 1.0 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights while the context is active."""
        weights = self.weights()
        self._write(self._averages)
        try:
            yield
        finally:
            self._write([weights[name] for name in self._names])

    def apply(self) -> None:
        """Give the model the averaged weights for good."""
        self._write(self._averages)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the model's own weights."""
        return {n: w.detach().clone() for n, w in zip(self._names, self._weights, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name."""
        return dict(zip(self._names, self._averages, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the averages with whole tensors, by name."""
        for name, average in zip(self._names, self._averages, strict=True):
            put(average, state[name])

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)
