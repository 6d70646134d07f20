from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, BackboneConfig, Count
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..embodiments import EMBODIMENT, required_embodiments
from ..features import common_steps, sequence_features, sequence_specs
from ..layers.basic import Activation, CategoryMlp, mlp


class MlpBackbone(Backbone):
    """Multi-layer perceptron over the robot's state, applied to each observation step (B, T, S).

    Publishes one token per step, `tokens` (B, T, D), and their concatenation, `pooled` (B, T * D). Several
    states are concatenated first. Without hidden layers it is one linear layer; with one hidden layer and
    per-robot weights, it is the state encoder of GR00T (Bjorck et al., 2025).
    """

    kind = Kind.STATE

    class Config(BackboneConfig):
        type: Literal["mlp"]
        width: Count = 64
        """Size D of the output of each observation step."""
        hidden: list[Count] = Field(max_length=MOST_LAYERS, default_factory=lambda: [256])
        """Sizes of the hidden layers; `[]` for one linear layer."""
        activation: Activation = "gelu"
        """Activation after each hidden layer."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate after each hidden layer."""
        per_embodiment: bool = False
        """Use separate first and last layers for each robot; for data of several robots."""
        in_dim: Count | None = None
        """Expected size of the state; by default that of the data. Another size is an error."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._states = tuple(
            key for key, spec in inputs.items() if key in self.keys and spec.kind is self.kind
        )
        sizes = [sum(inputs[key].width for key in self._states), *config.hidden, config.width]
        self.layers: nn.Module
        if config.per_embodiment:
            robots = required_embodiments(inputs, "per_embodiment")
            self.layers = CategoryMlp(robots, sizes, config.activation, config.dropout)
        else:
            self.layers = mlp(sizes, config.activation, config.dropout)

    @classmethod
    def reads(cls, config: BackboneConfig, available: Specs) -> dict[str, Spec]:
        """Return the states, and the embodiment if layers depend on it; raise SpecError if one is missing."""
        assert isinstance(config, cls.Config)
        found = super().reads(config, available)
        if config.per_embodiment:
            required_embodiments(available, "per_embodiment")
            found[EMBODIMENT] = available[EMBODIMENT]
        return found

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if the size of the state is not `in_dim`."""
        states = {key: spec for key, spec in cls.reads(config, inputs).items() if spec.kind is cls.kind}
        size = sum(spec.width for spec in states.values())
        if config.in_dim is not None and config.in_dim != size:
            raise SpecError(
                f"expects a state of {config.in_dim} values, but the data has {size}",
                field="in_dim",
                source=next(iter(states)),
                label=f"the data has {size}",
                help=" + ".join(f"{spec.width} ({key})" for key, spec in states.items())
                + "; leave `in_dim` out to use whatever the data has",
            )
        steps = common_steps(states)
        why = f"{steps} step{'s' if steps > 1 else ''} of {', '.join(states)} x width {config.width}"
        return sequence_specs(steps, config.width, why)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="mlp", width=8, hidden=[16])

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * D) and `tokens` (B, T, D)."""
        weight = next(self.parameters())
        state = torch.cat([observations[key] for key in self._states], dim=-1).to(weight.dtype)
        ids = [observations[EMBODIMENT]] if self.config.per_embodiment else []
        return sequence_features(self.layers(state, *ids), outputs)
