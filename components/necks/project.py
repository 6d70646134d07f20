from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from ...schemas.part import MOST_LAYERS, Count, NeckConfig
from ...schemas.specs import Spec, Specs
from ..base import Facts, Feature, Neck
from ..layers.basic import Activation, mlp
from ..layers.sequences import single_feature


class Project(Neck):
    """Linear layer or multi-layer perceptron on every token, or on a pooled feature.

    Publishes what it reads: `tokens` (B, N, D) with their mask, or `pooled` (B, D).
    """

    class Config(NeckConfig):
        type: Literal["project"]
        width: Count
        """Output size D."""
        hidden: list[Count] = Field(max_length=MOST_LAYERS, default_factory=list)
        """Sizes of the hidden layers; `[]` for one linear layer."""
        activation: Activation = "gelu"
        """Activation after each hidden layer."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate after each hidden layer."""
        norm: Literal["none", "layer"] = "none"
        """Norm before the first layer."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._key, spec = single_feature(config, inputs, self.roles["reads"])
        self._output = str(spec.kind)
        self.norm = nn.LayerNorm(spec.width) if config.norm == "layer" else nn.Identity()
        sizes = [spec.width, *config.hidden, config.width]
        self.layers = mlp(sizes, config.activation, config.dropout)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `tokens` or `pooled`, whichever the neck reads."""
        key, spec = single_feature(config, inputs, cls.roles["reads"])
        dims = (*spec.dims[:-1], config.width)
        return {str(spec.kind): replace(spec, dims=dims, why=f"{key} projected to width {config.width}")}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="project", reads=["vision.tokens"], width=6, hidden=[12], norm="layer")

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `tokens` (B, N, D) or `pooled` (B, D)."""
        feature = features[self._key]
        return {self._output: Feature(self.layers(self.norm(feature.values)), feature.mask)}
