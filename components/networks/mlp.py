from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...schemas.part import MOST_LAYERS, Count, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..denoising.heads import time_scale
from ..features import action_spec, chunk_size, features_of
from ..layers.basic import mlp, sinusoids


class MlpNetwork(Network):
    """Residual multi-layer perceptron over time, features and the whole chunk: Octo's diffusion head (2024).

        x += W2 silu(W1 norm(x))        action = W silu(x)

    Hidden steps become zeros.
    """

    accepts = (Kind.POOLED,)

    class Config(NetworkConfig):
        type: Literal["mlp"]
        width: Count = 256
        """Size of the hidden state."""
        depth: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 3
        """Number of residual blocks."""
        time_width: Annotated[int, Field(ge=2, multiple_of=2)] = 32
        """Size of the embedded time; even."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout rate before the norm of each block; 0.1 in Octo."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._horizon, self._action_dim = chunk_size(inputs)
        self._time_scale = time_scale(facts)
        features = features_of(inputs)
        self._keys = tuple(features)
        size = self._horizon * self._action_dim
        self.time = mlp([config.time_width, 2 * config.time_width, config.time_width], "silu")
        seen = config.time_width + sum(spec.width for spec in features.values())
        self.inward = nn.Linear(seen + size, config.width)
        self.blocks = nn.ModuleList(
            PerceptronBlock(config.width, config.dropout) for _ in range(config.depth)
        )
        self.outward = nn.Linear(config.width, size)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A)."""
        features_of(inputs)
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="mlp", width=64, depth=2, time_width=16)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """Return all features side by side, `condition` (B, C)."""
        values = [features[key].values for key in self._keys]
        return {"condition": torch.cat(values, dim=-1).to(self.inward.weight.dtype)}

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,)."""
        dtype = self.inward.weight.dtype
        if is_pad is not None:
            chunk = chunk.masked_fill(is_pad[..., None], 0.0)
        embedded = context["moment"] if "moment" in context else self._embed(time)
        hidden = self.inward(torch.cat([embedded, context["condition"], chunk.to(dtype).flatten(1)], dim=-1))
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.outward(F.silu(hidden))
        return out.reshape(-1, self._horizon, self._action_dim).float()

    def at(self, time: Tensor) -> Context:
        """Return the embedded `moment` (B, C)."""
        return {"moment": self._embed(time)}

    def _embed(self, time: Tensor) -> Tensor:
        angles = sinusoids(time, self.config.time_width, self._time_scale)
        embedded: Tensor = self.time(angles.to(self.inward.weight.dtype))
        return embedded


class PerceptronBlock(nn.Module):
    """x + W2 silu(W1 norm(x)), with a hidden size of four times the width."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.layers = mlp([width, 4 * width, width], "silu")

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, D) to (B, D)."""
        dropped = F.dropout(hidden, self.dropout, self.training)
        out: Tensor = hidden + self.layers(self.norm(dropped))
        return out
