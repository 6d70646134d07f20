from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch

from ...schemas.errors import SpecError
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature


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
        source, first = next(iter(states.items()))
        for key, spec in states.items():
            if spec.dims[1] != first.dims[1]:
                raise SpecError(
                    f"`{key}` is {spec} and `{source}` is {first}; their steps differ", source=key
                )
        steps, size = first.dims[1], sum(spec.width for spec in states.values())
        assert isinstance(steps, int)
        why = f"{steps} step{'s' if steps > 1 else ''} of {', '.join(states)}"
        return {
            "pooled": Spec(Kind.POOLED, ("B", steps * size), why),
            "tokens": Spec(Kind.TOKENS, ("B", steps, size), why),
        }

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="state")

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * S) and `tokens` (B, T, S)."""
        tokens = torch.cat([observations[key] for key in self.keys], dim=-1)
        features = {"pooled": Feature(tokens.flatten(1)), "tokens": Feature(tokens)}
        return {name: features[name] for name in features if name in outputs}
