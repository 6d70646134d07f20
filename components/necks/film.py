from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ...schemas.part import MOST_LAYERS, Count, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select
from ..layers.basic import Activation, mlp, zero
from ..layers.sequences import single_feature


class Film(Neck):
    """Feature-wise linear modulation (FiLM, Perez et al., 2018), such as of images by an instruction.

        y = (1 + scale(c)) x + shift(c)

    with c the features of the condition side by side, and one scale and shift for all tokens. It starts as
    the identity. Publishes what it reads: `tokens` (B, N, D) with their mask, or `pooled` (B, D).
    """

    roles: ClassVar[Mapping[str, tuple[Kind, ...]]] = {
        "reads": (Kind.TOKENS, Kind.POOLED),
        "condition": (Kind.POOLED,),
    }

    class Config(NeckConfig):
        type: Literal["film"]
        condition: list[str] = Field(min_length=1)
        """Pooled features that determine scale and shift."""
        hidden: list[Count] = Field(max_length=MOST_LAYERS, default_factory=list)
        """Sizes of hidden layers between the condition and scale and shift."""
        activation: Activation = "silu"
        """Activation after each hidden layer."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._key, spec = single_feature(config, inputs, self.roles["reads"])
        self._output = str(spec.kind)
        condition = select(config.condition, inputs, self.roles["condition"], "condition")
        self._condition = tuple(condition)
        sizes = [sum(held.width for held in condition.values()), *config.hidden, 2 * spec.width]
        self.layers = mlp(sizes, config.activation)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        zero(last)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `tokens` or `pooled`, whichever the neck reads, at the same size."""
        key, spec = single_feature(config, inputs, cls.roles["reads"])
        condition = select(config.condition, inputs, cls.roles["condition"], "condition")
        return {str(spec.kind): replace(spec, why=f"{key} modulated by {', '.join(condition)}")}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="film", reads=["vision.tokens"], condition=["state.pooled"], hidden=[8])

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `tokens` (B, N, D) or `pooled` (B, D)."""
        feature = features[self._key]
        condition = torch.cat([features[key].values for key in self._condition], dim=-1)
        scale, shift = self.layers(condition).chunk(2, dim=-1)
        if feature.values.ndim == 3:
            scale, shift = scale[:, None], shift[:, None]
        return {self._output: Feature(feature.values * (1.0 + scale) + shift, feature.mask)}
