"""Parameters that feed nothing are found before training, said, and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from policysmith.builder import Builder
from policysmith.builder.planning.checks.unused import unused
from policysmith.schemas import console

CONVNEXT = {"type": "timm", "name": "test_convnext"}


@pytest.fixture
def tokens(tiny: dict[str, Any]) -> dict[str, Any]:
    """A recipe that reads only the tokens of a model whose last norm serves the pooled vector alone."""
    tiny["policy"]["backbones"]["vision"] = dict(CONVNEXT)
    tiny["policy"]["head"] = {"type": "mlp", "reads": ["vision.tokens", "proprio"], "hidden": [16]}
    return tiny


def gradientless(policy: Any, batch: dict[str, Any]) -> set[str]:
    policy.train()
    policy(batch)["loss"].backward()
    return {name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None}


def test_they_are_summed_up_and_frozen(tokens: dict[str, Any], batch: Any) -> None:
    builder = Builder.from_recipe(tokens)
    summary, policy = builder.summary, builder.build()
    assert summary is not None
    assert list(summary.unused) == ["backbones.vision.model.head.*"]
    idle = [p for name, p in policy.named_parameters() if name.startswith("backbones.vision.model.head.")]
    assert idle
    assert not any(p.requires_grad for p in idle)
    assert summary.unused == {"backbones.vision.model.head.*": sum(p.numel() for p in idle)}
    assert summary.trainable == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert gradientless(policy, batch()) == set()


def test_they_are_shown(tokens: dict[str, Any], to_yaml: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path: Path = to_yaml(tokens)
    assert console.policysmith(["check", str(path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unused")]
    assert (
        line == "unused: 128 parameters do not affect the loss and are frozen: backbones.vision.model.head.*"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "policy.head": {
                "type": "flow_matching",
                "network": {"type": "dit", "width": 32, "depth": 2, "heads": 2},
            }
        },
        {"policy.head": {"type": "mlp", "reads": ["vision.tokens", "proprio"]}},
        {"policy.backbones.vision": CONVNEXT},
        {"policy.backbones.vision": {"type": "timm", "name": "test_vit"}, "transforms.1.size": 160},
        {"policy.freeze": ["backbones.vision.*"]},
    ],
    ids=str,
)
def test_nothing_else_is(tiny: dict[str, Any], batch: Any, changes: dict[str, Any]) -> None:
    """Zero-initialised gates and class tokens that only attention reads do get a gradient."""
    builder = Builder.from_recipe(tiny).override(changes)
    assert builder.summary is not None
    assert builder.summary.unused == {}
    assert gradientless(builder.build(), batch()) == set()


def test_patterns_name_the_outermost_idle_module_and_no_other_parameter() -> None:
    policy = nn.ModuleDict(
        {
            "used": nn.Linear(2, 2),
            "idle": nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
            "split": nn.ModuleDict({"read": nn.Linear(2, 1), "left": nn.Linear(2, 1)}),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    split: Any = policy["split"]
    loss = split["read"](policy["used"](torch.ones(1, 2)).detach() + policy["used"].bias).sum()
    assert unused(policy, loss) == {"used.weight": 4, "idle.*": 10, "split.left.*": 3}
