from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import nn

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select, sequence_features, sequence_specs
from ..layers.basic import Attention
from ..layers.blocks.transformer import check_heads
from ..layers.sequences import ConcatTokens, concatenated_spec


class AttentionPool(Neck):
    """Attention pooling: learned queries attend once to all tokens, after a norm (Lee et al., 2019).

    Publishes one token per query, `tokens` (B, Q, D), and their concatenation, `pooled` (B, Q * D). If a
    sample has no valid token, they do not depend on its tokens.
    """

    class Config(NeckConfig):
        type: Literal["attention_pool"]
        queries: Count = 1
        """Number of queries."""
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""
        heads: Count = 4
        """Number of attention heads, which share the width."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        features = select(config.reads, inputs, self.roles["reads"], "reads")
        width = concatenated_spec(features, config.width).width
        self.joined = ConcatTokens(features, config.width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(1, config.queries, width) * width**-0.5)
        self.attention = Attention(width, config.heads)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if widths differ or heads cannot share them."""
        width = concatenated_spec(
            select(config.reads, inputs, cls.roles["reads"], "reads"), config.width
        ).width
        check_heads(width, config.heads, config.width is not None)
        why = f"{config.queries} queries x {width}"
        return sequence_specs(config.queries, width, why)

    @classmethod
    def example(cls) -> Config:
        reads = ["vision.tokens", "state.pooled"]
        return cls.Config(type="attention_pool", reads=reads, queries=2, width=8, heads=2)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, Q * D) and `tokens` (B, Q, D)."""
        tokens, mask = self.joined(features)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        answers = self.attention(queries, self.norm(tokens), mask)
        return sequence_features(answers, outputs)
