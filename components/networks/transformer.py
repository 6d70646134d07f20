from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, Count, Depth, NetworkConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Context, Facts, Feature, Network
from ..denoising.heads import time_scale
from ..features import action_spec, chunk_size, features_of
from ..layers.basic import joined_mask, mlp, sinusoids
from ..layers.blocks.transformer import LayerOptions, TransformerLayer, check_heads
from ..layers.sequences import ConcatTokens, concatenated_spec


class DiffusionTransformer(Network):
    """Encoder-decoder transformer of Diffusion Policy (Chi et al., 2023), over time, features and chunk.

    Time and features are tokens of one sequence, mixed by an encoder of `encoder_depth` layers, or without
    any by a multi-layer perceptron per token. The steps of the chunk form another sequence: each attends to
    itself, to earlier steps, and to the first sequence. All tokens receive learned positions, those of
    features only if their number is fixed. Hidden steps are visible only to themselves.
    """

    accepts = (Kind.TOKENS, Kind.POOLED)

    class Config(LayerOptions, NetworkConfig):
        type: Literal["transformer"]
        width: Count = 256
        """Size of a token of the transformer."""
        depth: Depth = 8
        """Number of decoder layers."""
        encoder_depth: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 0
        """Number of encoder layers over time and features."""
        attention: Literal["causal", "full"] = "causal"
        """Let a step of the chunk see only earlier steps, or all."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        horizon, action_dim = chunk_size(inputs)
        features, width = features_of(inputs), config.width
        self._time_scale = time_scale(facts)
        self.joined = ConcatTokens(features, width)
        count = concatenated_spec(features, width).dims[1]
        self.positions = nn.Parameter(torch.randn(1, count, width) * 0.02) if isinstance(count, int) else None
        self.encoder = nn.ModuleList(TransformerLayer(config, width) for _ in range(config.encoder_depth))
        if not config.encoder_depth:
            self.perceptron = mlp([width, 4 * width, width], "mish")
        self.action_in = nn.Linear(action_dim, width)
        self.action_positions = nn.Parameter(torch.randn(1, horizon, width) * 0.02)
        self.layers = nn.ModuleList(
            TransformerLayer(config, width, ("self", "context")) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.action_out = nn.Linear(width, action_dim)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `action` (B, H, A); raise SpecError if the heads cannot share the width."""
        features_of(inputs)
        check_heads(config.width, config.heads)
        if config.width % 2:
            raise SpecError(
                f"a width of {config.width} cannot hold sines and cosines", field="width", label="odd"
            )
        return {"action": action_spec(inputs)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="transformer", width=32, depth=2, heads=2, encoder_depth=1)

    def encode(self, features: Mapping[str, Feature]) -> Context:
        """Return the features as a sequence, `tokens` (B, M, D), and `mask` (B, M) unless all are valid."""
        tokens, mask = self.joined(features)
        if self.positions is not None:
            tokens = tokens + self.positions
        return {"tokens": tokens} if mask is None else {"tokens": tokens, "mask": mask}

    def forward(self, chunk: Tensor, time: Tensor, context: Context, is_pad: Tensor | None = None) -> Tensor:
        """Return the prediction (B, H, A), float32, for chunk (B, H, A) and time (B,)."""
        dtype = self.action_in.weight.dtype
        embedded = (context["moment"] if "moment" in context else self._embed(time))[:, None]
        mask = joined_mask((embedded, None), (context["tokens"], context.get("mask")))
        seen = torch.cat([embedded, context["tokens"]], dim=1)  # (B, 1 + M, D)
        for layer in self.encoder:
            seen = layer(seen, mask)
        if not self.config.encoder_depth:
            seen = self.perceptron(seen)
        tokens = self.action_in(chunk.to(dtype)) + self.action_positions
        shown = self._visible(tokens, is_pad)
        for layer in self.layers:
            tokens = layer(tokens, shown, seen, mask)
        out: Tensor = self.action_out(self.norm(tokens))
        return out.float()

    def at(self, time: Tensor) -> Context:
        """Return the embedded `moment` (B, D)."""
        return {"moment": self._embed(time)}

    def _embed(self, time: Tensor) -> Tensor:
        angles = sinusoids(time, self.config.width, self._time_scale, ends="both")
        return angles.to(self.action_in.weight.dtype)

    def _visible(self, tokens: Tensor, is_pad: Tensor | None) -> Tensor | None:
        """Return the mask of visible steps (B, H, H); None if every step sees all others."""
        batch, horizon = tokens.shape[:2]
        if self.config.attention == "full" and is_pad is None:
            return None
        shown = tokens.new_ones(horizon, horizon, dtype=torch.bool)
        if self.config.attention == "causal":
            shown = shown.tril()
        shown = shown.expand(batch, -1, -1)
        if is_pad is None:
            return shown
        itself = torch.eye(horizon, dtype=torch.bool, device=tokens.device)
        return shown & (~is_pad[:, None] | itself)
