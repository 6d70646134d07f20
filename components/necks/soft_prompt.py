from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import nn

from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Dim, Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..embodiments import EMBODIMENT, required_embodiments
from ..features import select
from ..layers.basic import joined_mask
from ..layers.sequences import ConcatTokens, concatenated_spec


class SoftPrompt(Neck):
    """Learned tokens in front of all tokens that the neck reads (Lester et al., 2021).

    Publishes `tokens` (B, P + N, D), with their mask. With `per_embodiment`, each robot has separate learned
    tokens, as in X-VLA (Zheng et al., 2025).
    """

    class Config(NeckConfig):
        type: Literal["soft_prompt"]
        prompts: Count = 32
        """Number P of learned tokens."""
        width: Count | None = None
        """Width to which a separate linear layer projects each feature; by default features keep theirs."""
        per_embodiment: bool = False
        """Use separate learned tokens for each robot; for data of several robots."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        features = select(config.reads, inputs, self.roles["reads"], "reads")
        width = concatenated_spec(features, config.width).width
        robots = required_embodiments(inputs, "per_embodiment") if config.per_embodiment else 1
        self.joined = ConcatTokens(features, config.width)
        self.prompts = nn.Parameter(torch.randn(robots, config.prompts, width) * 0.02)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `tokens`; raise SpecError if widths differ or the data has one robot."""
        spec = concatenated_spec(select(config.reads, inputs, cls.roles["reads"], "reads"), config.width)
        if config.per_embodiment:
            required_embodiments(inputs, "per_embodiment")
        count = spec.dims[1]
        total: Dim = config.prompts + count if isinstance(count, int) else f"{config.prompts} + {count}"
        why = f"{config.prompts} prompts before {spec.why}"
        return {"tokens": Spec(Kind.TOKENS, ("B", total, spec.width), why)}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="soft_prompt", reads=["vision.tokens", "state.pooled"], prompts=2, width=8)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `tokens` (B, P + N, D)."""
        tokens, mask = self.joined(features)
        own = features[EMBODIMENT].values if self.config.per_embodiment else slice(None)
        prompts = self.prompts[own].expand(tokens.shape[0], -1, -1)
        whole = torch.cat([prompts, tokens], dim=1)
        return {"tokens": Feature(whole, joined_mask((prompts, None), (tokens, mask)))}
