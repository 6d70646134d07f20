from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import nn

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select
from ..layers.blocks.transformer import LayerOptions, TransformerLayer, check_heads
from ..layers.sequences import ConcatTokens, Positions, concatenated_spec, fixed_length, learned_positions


class SelfAttention(Neck):
    """Transformer encoder over all tokens, as one sequence.

    Publishes as many `tokens` (B, N, D) as it reads, with their mask. GR00T N1.5 and N1.7 have one over the
    tokens of their vision-language model, with `norm_in` and without `norm_out`.
    """

    class Config(LayerOptions, NeckConfig):
        type: Literal["self_attention"]
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""
        positions: Positions = "none"
        """Learned positions of the tokens, for a fixed number of tokens."""
        norm_in: bool = False
        """Normalize tokens before the first layer."""
        norm_out: bool = True
        """Normalize tokens after the last layer."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        features = select(config.reads, inputs, self.roles["reads"], "reads")
        spec = concatenated_spec(features, config.width)
        self.joined = ConcatTokens(features, config.width)
        self.positions = learned_positions(spec) if config.positions == "learned" else None
        self.norm_in = nn.LayerNorm(spec.width) if config.norm_in else nn.Identity()
        self.layers = nn.ModuleList(TransformerLayer(config, spec.width) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(spec.width) if config.norm_out else nn.Identity()

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `tokens`; raise SpecError if widths, heads or positions do not fit."""
        features = select(config.reads, inputs, cls.roles["reads"], "reads")
        spec = concatenated_spec(features, config.width)
        check_heads(spec.width, config.heads, config.width is not None)
        if config.positions == "learned":
            fixed_length(spec)
        return {"tokens": spec}

    @classmethod
    def example(cls) -> Config:
        reads = ["vision.tokens", "state.pooled"]
        return cls.Config(
            type="self_attention", reads=reads, width=8, heads=2, positions="learned", norm_in=True
        )

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `tokens` (B, N, D)."""
        tokens, mask = self.joined(features)
        if self.positions is not None:
            tokens = tokens + self.positions
        tokens = self.norm_in(tokens)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        return {"tokens": Feature(self.norm_out(tokens), mask)}
