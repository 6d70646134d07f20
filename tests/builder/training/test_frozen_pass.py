"""Frozen backbones compute the same with copies of their weights, and are the same as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from policysmith.builder import Builder
from policysmith.builder.training.frozen.fill import fast_backbones


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_features_are_the_same(tiny: dict[str, Any], precision: str) -> None:
    tiny["policy"]["freeze"] = ["backbones.vision.*"]
    policy: Any = Builder.from_recipe(tiny).build()
    images = torch.randint(0, 256, (2, 1, 3, 96, 96), dtype=torch.uint8)
    batch = {
        "observation.images.corner2": images,
        "observation.state": torch.zeros(2, 1, 4),
        "action": torch.zeros(2, 1, 4),
    }

    def features() -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            encoded = policy.encode("vision", policy.transform(batch))
        return {key: feature.values for key, feature in encoded.items()}

    expected, weights = features(), dict(policy.named_parameters())
    before = {name: dict(vars(module)) for name, module in policy.backbones.named_modules()}
    with fast_backbones(policy.backbones, features, precision):
        dtypes = {p.dtype for p in policy.backbones["vision"].parameters()}
        assert (torch.bfloat16 in dtypes) == (precision == "bf16")
        for key, value in features().items():
            torch.testing.assert_close(value, expected[key], rtol=0.02, atol=0.02)
    assert all(weights[name] is weight for name, weight in policy.named_parameters())
    assert before == {name: dict(vars(module)) for name, module in policy.backbones.named_modules()}
