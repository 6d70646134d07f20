"""The head `linear`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from policysmith.components import (
    WHOLE,
    ActionHead,
    Facts,
    Feature,
    HeadConfig,
    Kind,
    Shares,
    Spec,
    Specs,
    action_spec,
    chunk_size,
    features_of,
    masked_mean,
)


class LinearHead(ActionHead):
    """Linear regression of the chunk from pooled features."""

    accepts = (Kind.POOLED,)
    averages_values = True

    class Config(HeadConfig):
        type: Literal["linear"]

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._chunk = chunk_size(inputs)
        self._keys = tuple(features_of(inputs))
        width = sum(inputs[key].width for key in self._keys)
        self.layer = nn.Linear(width, self._chunk[0] * self._chunk[1])

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A)."""
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="linear")

    def loss(
        self, features: Mapping[str, Feature], actions: Tensor, is_pad: Tensor, shares: Shares = WHOLE
    ) -> dict[str, Tensor]:
        """Return the mean absolute error over the values that are not padding."""
        errors = (self.sample(features) - actions).abs()
        return {"loss": masked_mean(errors, is_pad, shares.get("values"))}

    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return the chunk (B, H, A)."""
        joined = torch.cat([features[key].values for key in self._keys], -1)
        return self.layer(joined).unflatten(-1, self._chunk)
