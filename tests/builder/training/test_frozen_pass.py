"""Frozen backbones with copies and compiled layers give what they give without, and are as before afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from policysmith.builder import Builder
from policysmith.builder.training.distributed.accelerator import make_accelerator
from policysmith.builder.training.frozen import fill
from policysmith.builder.training.frozen.fill import TIMED, WARM, FrozenPass
from policysmith.schemas.recipe import TrainingSection


@pytest.fixture
def policy(tiny: dict[str, Any]) -> Any:
    tiny["policy"]["freeze"] = ["backbones.vision.*"]
    return Builder.from_recipe(tiny).build()


def features(policy: Any, accelerator: Any, size: int) -> Callable[[], dict[str, Tensor]]:
    torch.manual_seed(size)
    images = torch.randint(0, 256, (size, 1, 3, 96, 96), dtype=torch.uint8)
    state = torch.zeros(size, 1, 4)

    def run() -> dict[str, Tensor]:
        batch = {
            "observation.images.corner2": images,
            "observation.state": state,
            "action": torch.zeros(size, 1, 4),
        }
        with torch.no_grad(), accelerator.autocast():
            made = policy.encode("vision", policy.transform(batch))
        return {key: feature.values for key, feature in made.items()}

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
def test_features_are_the_same(
    policy: Any, precision: Any, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "COMPILES", 0.0)
    section = TrainingSection(steps=1, precision=precision)
    accelerator = make_accelerator(section, "cpu")
    compiled = []
    before = {name: dict(vars(module)) for name, module in policy.backbones.named_modules()}
    weights = dict(policy.named_parameters())
    count = WARM + TIMED + 3
    with FrozenPass(policy, ["vision"], accelerator, count if compiles else 0) as run:
        for step in range(count):
            whole = step < count - 1
            make = features(policy, accelerator, 2 if whole else 1)
            graphs = counters["stats"]["unique_graphs"]
            ours = run(make, whole=whole)
            assert whole or counters["stats"]["unique_graphs"] == graphs  # nothing is compiled for the last
            compiled.append(any(m._compiled_call_impl is not None for m in policy.modules()))
            with torch.compiler.set_stance("force_eager"):
                theirs = make()
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, rtol=0.02, atol=0.02)
        halves = {p.dtype for p in policy.backbones["vision"].parameters()}
        assert (torch.bfloat16 in halves) == (precision == "bf16")
    assert compiled == [compiles and step >= WARM + TIMED for step in range(count)]
    assert all(weights[name] is weight for name, weight in policy.named_parameters())
    after = {name: dict(vars(module)) for name, module in policy.backbones.named_modules()}
    assert {n: set(v) - {"_compiled_call_impl"} for n, v in after.items()} == {
        n: set(v) - {"_compiled_call_impl"} for n, v in before.items()
    }
    assert all(m._compiled_call_impl is None for m in policy.modules())
