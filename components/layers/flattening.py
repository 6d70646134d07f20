"""Features as one vector per sample, for heads that are multi-layer perceptrons."""

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


def flat_sizes(inputs: Specs, tokens: Tokens) -> dict[str, int]:
    """Return the number of values of each feature; raise SpecError if it varies."""
    sizes = {}
    for key, spec in features_of(inputs).items():
        size = spec.width
        if spec.kind is Kind.TOKENS and tokens == "flatten":
            count = spec.dims[1]
            if not isinstance(count, int):
                raise SpecError(
                    f"`{key}` is {spec}: a varying number of tokens cannot be flattened",
                    field="tokens",
                    source=key,
                    label="the number of tokens varies",
                    help="use `tokens: mean`",
                )
            size *= count
        sizes[key] = size
    return sizes


def flatten_features(
    features: Mapping[str, Feature], keys: Mapping[str, int], tokens: Tokens, dtype: torch.dtype
) -> Tensor:
    """Concatenate features to (B, D)."""
    return torch.cat([_flatten(features[key], tokens).to(dtype) for key in keys], dim=-1)


def _flatten(feature: Feature, tokens: Tokens) -> Tensor:
    """Reduce a feature (B, D) or (B, N, D) to (B, ...); masked tokens become zeros, or leave the mean."""
    values, mask = feature.values, feature.mask
    if values.ndim == 2:
        return values
    if mask is not None:
        values = values.masked_fill(~mask[..., None], 0.0)
    if tokens == "flatten":
        return values.flatten(1)
    return values.mean(1) if mask is None else values.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
