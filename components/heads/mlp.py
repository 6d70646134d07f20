"""A multi-layer perceptron that predicts the whole action chunk at once."""

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
from ..layers.flattening import Tokens, joined, sizes_of
from ..shares import WHOLE, Shares


class MlpHead(ActionHead):
    """Regression: features -> MLP -> (B, H, A). All features are concatenated, in the order they are given."""

    accepts = (Kind.POOLED, Kind.TOKENS)
    averages_values = True

    class Config(HeadConfig):
        """A multi-layer perceptron that predicts the whole action chunk at once."""

        type: Literal["mlp"]
        """Predict actions by regression, with a multi-layer perceptron."""
        loss: Literal["l1", "l2", "huber"] = "l1"
        """Absolute, squared or Huber error, in normalised units."""
        delta: float = Field(default=1.0, gt=0.0)
        """Error at which the Huber loss turns from squared to absolute."""
        hidden: list[Count] = Field(max_length=MOST_LAYERS, default_factory=lambda: [512, 512])
        """Sizes of the hidden layers."""
        activation: Activation = "gelu"
        """Activation after each hidden layer."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate after each hidden layer."""
        tokens: Tokens = "flatten"
        """How tokens become one vector: all side by side (keeps where things are in an image), or their mean."""
        per_embodiment: bool = False
        """Whether each robot has first and last layers of its own; for data of several robots."""
        in_dim: Count | None = None
        """Expected number of input features; by default what the inputs give. A different number is an error."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._sizes = sizes_of(inputs, config.tokens)
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
        """`action` (B, H, A); raises SpecError for another number of input features than `in_dim`, and for one robot alone."""
        if config.per_embodiment:
            required_embodiments(inputs, "per_embodiment")
        sizes = sizes_of(inputs, config.tokens)
        total = sum(sizes.values())
        if config.in_dim is not None and config.in_dim != total:
            parts = [f"{size} ({key.removesuffix('.pooled')})" for key, size in sizes.items()]
            raise SpecError(
                f"expects {config.in_dim} input features but its inputs give {total}",
                field="in_dim",
                source=next(iter(sizes)),
                label=f"its inputs give {total}",
                help=f"{total} = {' + '.join(parts)}; leave `in_dim` out to use whatever comes in",
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
        """Mean error over the values that are no padding."""
        predicted, target = self.sample(features).float(), actions.float()
        if self.config.loss == "l1":
            errors = F.l1_loss(predicted, target, reduction="none")
        elif self.config.loss == "l2":
            errors = F.mse_loss(predicted, target, reduction="none")
        else:
            errors = F.huber_loss(predicted, target, reduction="none", delta=self.config.delta)
        return {"loss": masked_mean(errors, is_pad, shares.get("values"))}

    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """The predicted chunk (B, H, A); it is the same for every generator."""
        weight = next(self.parameters())
        ids = [features[EMBODIMENT].values] if self.config.per_embodiment else []
        predicted: Tensor = self.layers(joined(features, self._sizes, self.config.tokens, weight.dtype), *ids)
        return predicted.reshape(-1, self._horizon, self._action_dim)
