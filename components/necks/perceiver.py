from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import nn

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select, sequence_features, sequence_specs
from ..layers.blocks.transformer import LayerOptions, TransformerLayer, check_heads
from ..layers.sequences import ConcatTokens, concatenated_spec


class Perceiver(Neck):
    """Perceiver resampler: a fixed number of learned latents attend to tokens, in several layers.

    The latents also attend to each other, with a norm at the end, as in the resampler of a Perceiver
    (Jaegle et al., 2021) or a Q-Former (Li et al., 2023). Publishes the latents, `tokens` (B, M, D), and
    their concatenation, `pooled` (B, M * D).
    """

    class Config(LayerOptions, NeckConfig):
        type: Literal["perceiver"]
        latents: Count = 32
        """Number of latents."""
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""
        self_attention: bool = True
        """Let latents attend to each other before they attend to tokens, in every layer, as in a Q-Former."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        features = select(config.reads, inputs, self.roles["reads"], "reads")
        width = concatenated_spec(features, config.width).width
        self.joined = ConcatTokens(features, config.width)
        self.norm_in = nn.LayerNorm(width)
        self.latents = nn.Parameter(torch.randn(1, config.latents, width) * width**-0.5)
        attends = ("self", "context") if config.self_attention else ("context",)
        self.layers = nn.ModuleList(TransformerLayer(config, width, attends) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if widths differ or heads cannot share them."""
        width = concatenated_spec(
            select(config.reads, inputs, cls.roles["reads"], "reads"), config.width
        ).width
        check_heads(width, config.heads, config.width is not None)
        why = f"{config.latents} latents x {width}"
        return sequence_specs(config.latents, width, why)

    @classmethod
    def example(cls) -> Config:
        reads = ["vision.tokens", "state.pooled"]
        return cls.Config(type="perceiver", reads=reads, latents=3, width=8, heads=2)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, M * D) and `tokens` (B, M, D)."""
        tokens, mask = self.joined(features)
        context, latents = self.norm_in(tokens), self.latents.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, None, context, mask)
        latents = self.norm_out(latents)
        return sequence_features(latents, outputs)
