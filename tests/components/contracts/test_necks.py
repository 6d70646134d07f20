"""Contract of necks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from policysmith.components.base import Feature
from policysmith.components.registry import (
    NECKS,
)

from .built import Built, assert_equal, masked_where, of, randomize


def of_valid(published: dict[str, Feature]) -> dict[str, Tensor]:
    """Return the values of outputs, without those of masked tokens."""
    kept = {}
    for key, feature in published.items():
        values, mask = feature.values, feature.mask
        if mask is not None:  # (B, N), where values are (B, ..., N, D)
            hidden = ~mask.reshape(len(mask), *[1] * (values.ndim - 3), -1, 1)
            values = values.masked_fill(hidden, 0.0)
        kept[key] = values
    return kept


@of(NECKS)
def test_masked_tokens_have_no_influence_on_a_neck(built: Built) -> None:
    part, features, outputs = built.make().eval(), built.features(), tuple(built.specs())
    randomize(part)
    if all(feature.mask is None for feature in features.values()):
        pytest.skip("nothing that it reads has a mask")
    whole, hidden, shown = (
        of_valid(part({key: masked_where(f, change, hides) for key, f in features.items()}, outputs))
        for change, hides in (
            (lambda v: v, True),
            (lambda v: v * 0 + 50.0, True),
            (lambda v: 2 * v + 1, False),
        )
    )
    assert_equal(whole, hidden)
    assert all(not torch.equal(value, shown[key]) for key, value in whole.items())


@of(NECKS)
def test_a_neck_without_a_valid_token_is_finite(built: Built) -> None:
    part, outputs = built.make(), tuple(built.specs())
    randomize(part)
    some = (torch.arange(3) > 0)[:, None]
    features = {
        key: feature if feature.mask is None else dataclasses.replace(feature, mask=feature.mask & some)
        for key, feature in built.features().items()
    }
    published = part(features, outputs)
    assert all(feature.values.isfinite().all() for feature in published.values())
    if list(part.parameters()):
        sum((value**2).sum() for value in of_valid(published).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)
