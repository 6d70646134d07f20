from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select
from ..layers.sequences import ConcatTokens, concatenated_spec


class Concat(Neck):
    """Concatenation of features in the given order: tokens to one sequence, pooled ones to one vector.

    With `width`, separate layers project each feature first. Publishes one sequence, `tokens` (B, N, D), in
    which a pooled feature is one token. If all features are pooled, it also publishes their values side by
    side, `pooled` (B, ...); for this they may differ in width.
    """

    class Config(NeckConfig):
        type: Literal["concat"]
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self.joined = ConcatTokens(select(config.reads, inputs, self.roles["reads"], "reads"), config.width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of `pooled`, `tokens` or both; raise SpecError for tokens of different widths."""
        features = select(config.reads, inputs, cls.roles["reads"], "reads")
        specs = {}
        if all(spec.kind is Kind.POOLED for spec in features.values()):
            sizes = {key: config.width or spec.width for key, spec in features.items()}
            why = " + ".join(f"{size} ({key.removesuffix('.pooled')})" for key, size in sizes.items())
            specs["pooled"] = Spec(Kind.POOLED, ("B", sum(sizes.values())), why)
        same_width = config.width is not None or len({spec.width for spec in features.values()}) == 1
        if same_width or not specs:
            specs["tokens"] = concatenated_spec(features, config.width)
        return specs

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="concat", reads=["vision.tokens", "state.pooled"], width=6)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `tokens` (B, N, D) with their mask, and `pooled` (B, ...)."""
        made = {}
        if "pooled" in outputs:
            made["pooled"] = Feature(
                torch.cat([tokens[:, 0] for tokens, _ in self.joined.parts(features)], -1)
            )
        if "tokens" in outputs:
            made["tokens"] = Feature(*self.joined(features))
        return made
