"""Features as one vector a sample: what heads read that are multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Kind, Specs
from ..base import Feature
from ..features import features_of

Tokens = Literal["flatten", "mean"]


def sizes_of(inputs: Specs, tokens: Tokens) -> dict[str, int]:
    """Number of values that each feature gives; raises SpecError where that varies."""
    sizes = {}
    for key, spec in features_of(inputs).items():
        size = spec.width
        if spec.kind is Kind.TOKENS and tokens == "flatten":
            count = spec.dims[1]
            if not isinstance(count, int):
                raise SpecError(
                    f"`{key}` is {spec}: a varying number of tokens has no fixed size when flattened",
                    field="tokens",
                    source=key,
                    label="the number of tokens varies",
                    help="use `tokens: mean`",
                )
            size *= count
        sizes[key] = size
    return sizes


def joined(
    features: Mapping[str, Feature], keys: Mapping[str, int], tokens: Tokens, dtype: torch.dtype
) -> Tensor:
    """The features of some keys side by side, (B, D)."""
    return torch.cat([_vector(features[key], tokens).to(dtype) for key in keys], dim=-1)


def _vector(feature: Feature, tokens: Tokens) -> Tensor:
    """(B, D) or (B, N, D) -> (B, ...); tokens that the mask leaves out count as zero, or not at all."""
    values, mask = feature.values, feature.mask
    if values.ndim == 2:
        return values
    if mask is not None:
        values = values.masked_fill(~mask[..., None], 0.0)
    if tokens == "flatten":
        return values.flatten(1)
    return values.mean(1) if mask is None else values.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
