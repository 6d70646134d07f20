from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, Count, HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..embodiments import EMBODIMENT, required_embodiments
from ..features import action_spec, chunk_size, masked_mean
from ..layers.basic import Activation, CategoryMlp, mlp
from ..layers.flattening import Tokens, flat_sizes, flatten_features
from ..shares import WHOLE, Shares


class MlpHead(ActionHead):
    """Regression of the whole chunk by a multi-layer perceptron over all features, in the given order."""

    accepts = (Kind.POOLED, Kind.TOKENS)
    averages_values = True

    class Config(HeadConfig):
        type: Literal["mlp"]
        loss: Literal["l1", "l2", "huber"] = "l1"
        """Absolute, squared or Huber error, in normalized units."""
        delta: float = Field(default=1.0, gt=0.0)
        """Error at which the Huber loss changes from squared to absolute."""
        hidden: list[Count] = Field(max_length=MOST_LAYERS, default_factory=lambda: [512, 512])
        """Sizes of the hidden layers."""
        activation: Activation = "gelu"
        """Activation after each hidden layer."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate after each hidden layer."""
        tokens: Tokens = "flatten"
        """Reduction of tokens to one vector: side by side (preserves positions in an image), or their mean."""
        per_embodiment: bool = False
        """Use separate first and last layers for each robot; for data of several robots."""
        in_dim: Count | None = None
        """Expected number of input features; by default that of the inputs. Another number is an error."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._sizes = flat_sizes(inputs, config.tokens)
        self._horizon, self._action_dim = chunk_size(inputs)
        sizes = [sum(self._sizes.values()), *config.hidden, self._horizon * self._action_dim]
        self.layers: nn.Module
        if config.per_embodiment:
            robots = required_embodiments(inputs, "per_embodiment")
            self.layers = CategoryMlp(robots, sizes, config.activation, config.dropout)
        else:
            self.layers = mlp(sizes, config.activation, config.dropout)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError if `in_dim` or the robots do not fit."""
        if config.per_embodiment:
            required_embodiments(inputs, "per_embodiment")
        sizes = flat_sizes(inputs, config.tokens)
        total = sum(sizes.values())
        if config.in_dim is not None and config.in_dim != total:
            parts = [f"{size} ({key.removesuffix('.pooled')})" for key, size in sizes.items()]
            raise SpecError(
                f"expects {config.in_dim} input features but its inputs give {total}",
                field="in_dim",
                source=next(iter(sizes)),
                label=f"its inputs give {total}",
                help=f"{total} = {' + '.join(parts)}; leave `in_dim` out to use all of them",
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="mlp", hidden=[32])

    def loss(
        self,
        features: Mapping[str, Feature],
        actions: Tensor,
        is_pad: Tensor,
        shares: Shares = WHOLE,
    ) -> dict[str, Tensor]:
        """Return the mean error over the values that are not padding."""
        predicted, target = self.sample(features).float(), actions.float()
        if self.config.loss == "l1":
            errors = F.l1_loss(predicted, target, reduction="none")
        elif self.config.loss == "l2":
            errors = F.mse_loss(predicted, target, reduction="none")
        else:
            errors = F.huber_loss(predicted, target, reduction="none", delta=self.config.delta)
        return {"loss": masked_mean(errors, is_pad, shares.get("values"))}

    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """Return the predicted chunk (B, H, A), independent of the generator."""
        weight = next(self.parameters())
        ids = [features[EMBODIMENT].values] if self.config.per_embodiment else []
        predicted: Tensor = self.layers(
            flatten_features(features, self._sizes, self.config.tokens, weight.dtype), *ids
        )
        return predicted.reshape(-1, self._horizon, self._action_dim)
