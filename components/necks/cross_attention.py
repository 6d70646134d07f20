from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select
from ..layers.blocks.transformer import LayerOptions, TransformerLayer, check_heads
from ..layers.sequences import ConcatTokens, concatenated_spec

_KINDS = (Kind.TOKENS, Kind.POOLED)


class CrossAttention(Neck):
    """Transformer decoder: tokens attend to those of a condition, in several layers.

    Publishes as many `tokens` (B, N, D) as it reads, with their mask.
    """

    roles: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"reads": _KINDS, "condition": _KINDS}

    class Config(LayerOptions, NeckConfig):
        type: Literal["cross_attention"]
        condition: list[str] = Field(min_length=1)
        """Features to attend to."""
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""
        self_attention: bool = False
        """Let the tokens also attend to each other, before they attend to the condition."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        reads, condition = _split_roles(config, inputs)
        width = concatenated_spec(reads, config.width).width
        self.queries, self.condition = (
            ConcatTokens(reads, config.width),
            ConcatTokens(condition, config.width),
        )
        self.norm_in = nn.LayerNorm(width)
        attends = ("self", "context") if config.self_attention else ("context",)
        self.layers = nn.ModuleList(TransformerLayer(config, width, attends) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `tokens`; raise SpecError if widths differ or heads cannot share them."""
        reads, condition = _split_roles(config, inputs)
        width = concatenated_spec({**reads, **condition}, config.width).width
        check_heads(width, config.heads, config.width is not None)
        return {"tokens": concatenated_spec(reads, config.width)}

    @classmethod
    def example(cls) -> Config:
        condition = ["vision.tokens", "state.pooled"]
        return cls.Config(
            type="cross_attention",
            reads=["model.queries"],
            condition=condition,
            width=8,
            heads=2,
            self_attention=True,
        )

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `tokens` (B, N, D)."""
        tokens, mask = self.queries(features)
        condition, valid = self.condition(features)
        condition = self.norm_in(condition)
        for layer in self.layers:
            tokens = layer(tokens, mask, condition, valid)
        return {"tokens": Feature(self.norm_out(tokens), mask)}


def _split_roles(config: CrossAttention.Config, inputs: Specs) -> tuple[dict[str, Spec], dict[str, Spec]]:
    """Return the features that attend, and those that they attend to."""
    return select(config.reads, inputs, _KINDS, "reads"), select(
        config.condition, inputs, _KINDS, "condition"
    )
