"""A part of a user's own, as `imports:` of a recipe names it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from torch import nn

from policysmith.components import (
    BACKBONES,
    Backbone,
    BackboneConfig,
    Batch,
    Facts,
    Feature,
    Kind,
    Spec,
    Specs,
)


@BACKBONES.register
class MeanColour(Backbone):
    """Encodes the mean colour of every image."""

    kind = Kind.IMAGE

    class Config(BackboneConfig):
        type: Literal["mean_colour"]
        width: int = 4
        """Size of the feature."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self.layer = nn.Linear(3, config.width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        return {"pooled": Spec(Kind.POOLED, ("B", config.width))}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="mean_colour")

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        return {"pooled": Feature(self.layer(observations[self.keys[0]].mean(dim=(1, 3, 4))))}
