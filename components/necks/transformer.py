from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select
from ..layers.blocks.transformer import LayerOptions, TransformerLayer, check_heads
from ..layers.sequences import ConcatTokens, Positions, concatenated_spec, fixed_length, learned_positions


class Transformer(Neck):
    """Transformer over all tokens as one sequence, with readout tokens.

    Readout tokens (Octo, 2024) follow the observations: they see the observations and each other, but no
    observation sees them. Publishes the readouts, `tokens` (B, R, D), and their concatenation, `pooled`
    (B, R * D). Without readouts it publishes every token with its mask, and as `pooled` (B, D) the last valid
    one, which with `attention: causal` is the present step of a policy with memory, as in robomimic's
    BC-Transformer.
    """

    class Config(LayerOptions, NeckConfig):
        type: Literal["transformer"]
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""
        attention: Literal["full", "causal"] = "full"
        """Let tokens see all others, or only earlier ones."""
        readouts: Annotated[int, Field(ge=0)] = 1
        """Number of readout tokens; without any, the last token is the readout."""
        positions: Positions = "learned"
        """Learned positions of the tokens, for a fixed number of tokens."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        features = select(config.reads, inputs, self.roles["reads"], "reads")
        spec = concatenated_spec(features, config.width)
        width = spec.width
        self.joined = ConcatTokens(features, config.width)
        self.positions = learned_positions(spec) if config.positions == "learned" else None
        self.readouts = (
            nn.Parameter(torch.randn(1, config.readouts, width) * 0.02) if config.readouts else None
        )
        self.layers = nn.ModuleList(TransformerLayer(config, width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if widths, heads or positions do not fit."""
        spec = concatenated_spec(select(config.reads, inputs, cls.roles["reads"], "reads"), config.width)
        check_heads(spec.width, config.heads, config.width is not None)
        if config.positions == "learned":
            fixed_length(spec)
        count, width = config.readouts, spec.width
        if not count:
            return {"pooled": Spec(Kind.POOLED, ("B", width), f"the last of {spec.why}"), "tokens": spec}
        why = f"{count} readouts x {width}"
        return {
            "pooled": Spec(Kind.POOLED, ("B", count * width), why),
            "tokens": Spec(Kind.TOKENS, ("B", count, width), why),
        }

    @classmethod
    def example(cls) -> Config:
        reads = ["vision.tokens", "state.pooled"]
        return cls.Config(type="transformer", reads=reads, width=8, heads=2, readouts=2)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, D) or (B, R * D), and `tokens` (B, N, D) or (B, R, D)."""
        tokens, mask = self.joined(features)
        if self.positions is not None:
            tokens = tokens + self.positions
        seen = self._visible(tokens, mask)
        if self.readouts is not None:
            tokens = torch.cat([tokens, self.readouts.expand(tokens.shape[0], -1, -1)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, seen)
        tokens = self.norm(tokens)
        if self.readouts is not None:
            tokens, mask = tokens[:, -self.config.readouts :], None
            pooled = tokens.flatten(1)
        else:
            pooled = _last(tokens, mask)
        made = {"pooled": Feature(pooled), "tokens": Feature(tokens, mask)}
        return {name: made[name] for name in made if name in outputs}

    def _visible(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the mask of visible tokens (B, N + R, N + R) or (B, N); None if all are visible."""
        count, readouts = tokens.shape[1], self.config.readouts
        if self.config.attention == "full" and not readouts:
            return mask
        key = torch.arange(count + readouts, device=tokens.device)
        query = key[:, None]
        observed = key <= query if self.config.attention == "causal" else key < count
        seen = (observed | (query >= count)).expand(tokens.shape[0], -1, -1)
        if mask is None:
            return seen
        valid = torch.cat([mask, mask.new_ones(mask.shape[0], readouts)], dim=1)
        return seen & valid[:, None]


def _last(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the last valid token (B, D) of tokens (B, N, D), or the first if none is valid."""
    if mask is None:
        return tokens[:, -1]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = torch.where(mask, places, 0).amax(dim=1)
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), last]
