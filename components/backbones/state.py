from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch

from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..features import common_steps, sequence_features, sequence_specs


class State(Backbone):
    """The robot's state, unchanged, for heads that encode it themselves.

    Publishes one token per step, `tokens` (B, T, S), and their concatenation, `pooled` (B, T * S). Several
    states are concatenated first.
    """

    kind = Kind.STATE

    class Config(BackboneConfig):
        type: Literal["state"]

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of `pooled` and `tokens`; raise SpecError if the states differ in steps."""
        states = cls.reads(config, inputs)
        steps, size = common_steps(states), sum(spec.width for spec in states.values())
        why = f"{steps} step{'s' if steps > 1 else ''} of {', '.join(states)}"
        return sequence_specs(steps, size, why)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="state")

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * S) and `tokens` (B, T, S)."""
        return sequence_features(torch.cat([observations[key] for key in self.keys], dim=-1), outputs)
