from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..features import select


class Flatten(Neck):
    """All tokens side by side in one vector, as an MLP reads an image.

    A pooled feature is one token. Publishes `pooled` (B, N * D), or (B, width) after a linear layer. Masked
    tokens become zeros.
    """

    roles: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"reads": (Kind.TOKENS, Kind.POOLED)}

    class Config(NeckConfig):
        type: Literal["flatten"]
        width: Count | None = None
        """Width of a linear projection of the vector; by default none."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._keys = tuple(select(config.reads, inputs, self.roles["reads"], "reads"))
        size = _size(config, inputs)
        self.project = nn.Identity() if config.width is None else nn.Linear(size, config.width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `pooled`; raise SpecError if the number of tokens varies."""
        size = _size(config, inputs)
        return {"pooled": Spec(Kind.POOLED, ("B", config.width or size), f"{size} values side by side")}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="flatten", reads=["vision.tokens", "state.pooled"], width=6)

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, N * D) or (B, width)."""
        parts = [_values(features[key]).flatten(1) for key in self._keys]
        return {"pooled": Feature(self.project(torch.cat(parts, -1)))} if "pooled" in outputs else {}


def _values(feature: Feature) -> Tensor:
    if feature.mask is None:
        return feature.values
    return feature.values.masked_fill(~feature.mask[..., None], 0.0)


def _size(config: Flatten.Config, inputs: Specs) -> int:
    """Return the number of values of one sample, N * D."""
    size = 0
    for key, spec in select(config.reads, inputs, Flatten.roles["reads"], "reads").items():
        count = spec.dims[1] if spec.kind is Kind.TOKENS else 1
        if not isinstance(count, int):
            raise SpecError(
                f"`{key}` is {spec}; only a fixed number of tokens can be flattened",
                field="reads",
                source=key,
                label="the number of tokens varies",
                help="pool it first, by `{type: attention_pool}`",
            )
        size += count * spec.width
    return size
