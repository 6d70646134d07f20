"""A multi-layer perceptron that predicts the whole action chunk at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import HeadConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import ActionHead, Facts, Feature
from ..embodiments import EMBODIMENT, required_embodiments
from ..features import action_spec, chunk_size, features_of, masked_mean
from ..layers import Activation, CategoryMlp, mlp

Width = Annotated[int, Field(ge=1)]


class MlpHead(ActionHead):
    """Regression: features -> MLP -> (B, H, A). All features are concatenated, in the order they are given."""

    accepts = (Kind.POOLED, Kind.TOKENS)

    class Config(HeadConfig):
        """A multi-layer perceptron that predicts the whole action chunk at once."""

        type: Literal["mlp"]
        """Predict actions by regression, with a multi-layer perceptron."""
        loss: Literal["l1", "l2", "huber"] = "l1"
        """Absolute, squared or Huber error, in normalised units."""
        delta: float = Field(default=1.0, gt=0.0)
        """Error at which the Huber loss turns from squared to absolute."""
        hidden: list[Width] = Field(default_factory=lambda: [512, 512])
        """Sizes of the hidden layers."""
        activation: Activation = "gelu"
        """Activation after each hidden layer."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate after each hidden layer."""
        tokens: Literal["flatten", "mean"] = "flatten"
        """How tokens become one vector: all side by side (keeps where things are in an image), or their mean."""
        per_embodiment: bool = False
        """Whether each robot has first and last layers of its own; for data of several robots."""
        in_dim: Width | None = None
        """Expected number of input features; by default what the inputs give. A different number is an error."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._sizes = _sizes(config, inputs)
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
        sizes = _sizes(config, inputs)
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
    def tiny(cls, directory: Path) -> Config:
        return cls.Config(type="mlp", hidden=[32])

    def loss(self, features: Mapping[str, Feature], actions: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """Mean error over the values that are no padding."""
        predicted, target = self.sample(features).float(), actions.float()
        if self.config.loss == "l1":
            errors = F.l1_loss(predicted, target, reduction="none")
        elif self.config.loss == "l2":
            errors = F.mse_loss(predicted, target, reduction="none")
        else:
            errors = F.huber_loss(predicted, target, reduction="none", delta=self.config.delta)
        return {"loss": masked_mean(errors, is_pad)}

    def sample(self, features: Mapping[str, Feature], generator: torch.Generator | None = None) -> Tensor:
        """The predicted chunk (B, H, A); it is the same for every generator."""
        weight = next(self.parameters())
        vectors = [self._vector(features[key]).to(weight.dtype) for key in self._sizes]
        ids = [features[EMBODIMENT].values] if self.config.per_embodiment else []
        predicted: Tensor = self.layers(torch.cat(vectors, dim=-1), *ids)
        return predicted.reshape(-1, self._horizon, self._action_dim)

    def _vector(self, feature: Feature) -> Tensor:
        """(B, D) or (B, N, D) -> (B, ...); tokens that the mask leaves out count as zero, or not at all."""
        values, mask = feature.values, feature.mask
        if values.ndim == 2:
            return values
        if mask is not None:
            values = values.masked_fill(~mask[..., None], 0.0)
        if self.config.tokens == "flatten":
            return values.flatten(1)
        return values.mean(1) if mask is None else values.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def _sizes(config: MlpHead.Config, inputs: Specs) -> dict[str, int]:
    """Number of values that each feature gives."""
    sizes = {}
    for key, spec in features_of(inputs).items():
        size = spec.width
        if spec.kind is Kind.TOKENS and config.tokens == "flatten":
            count = spec.dims[1]
            if not isinstance(count, int):
                raise SpecError(
                    f"`{key}` is {spec}: a varying number of tokens has no fixed size when flattened",
                    field="tokens",
                    source=key,
                    label="the number of tokens varies",
                    help="use `tokens: mean`",
                )
            size *= count
        sizes[key] = size
    return sizes
