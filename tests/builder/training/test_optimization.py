"""Parameter groups, the schedule and the weight average, against their definitions."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from policysmith.builder import Builder
from policysmith.builder.training.monitoring.health import Health
from policysmith.builder.training.optim.build import build_optimizer
from policysmith.builder.training.optim.ema import WeightAverage
from policysmith.builder.training.optim.groups import parameter_groups
from policysmith.builder.training.optim.schedule import learning_rate
from policysmith.schemas.recipe import GroupSection, OptimizerSection, ScheduleSection


def test_only_matrices_and_kernels_decay() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    groups = parameter_groups(model, OptimizerSection(weight_decay=0.1))
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    spared = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    assert decayed == {n for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1}
    assert spared == {n for n, _ in model.named_parameters()} - decayed
    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight", "head.bias"} <= spared


def test_positions_of_the_flow_head_do_not_decay(tiny: dict[str, Any]) -> None:
    tiny["policy"]["head"] = {
        "type": "flow_matching",
        "network": {"type": "dit", "width": 16, "depth": 1, "heads": 2},
    }
    policy = Builder.from_recipe(tiny).build(device="meta")
    decayed = {
        n for g in parameter_groups(policy, OptimizerSection()) if g["weight_decay"] for n in g["names"]
    }
    assert decayed
    assert not [name for name in decayed if "position" in name]


def test_first_matching_pattern_sets_rate_and_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    section = OptimizerSection(
        lr=1e-2,
        weight_decay=0.5,
        groups=[
            GroupSection(match="0.*", lr_scale=0.1, weight_decay=0.0),
            GroupSection(match="*", lr_scale=2.0),
        ],
    )
    by_name = {n: g for g in parameter_groups(model, section) for n in g["names"]}
    assert by_name["0.weight"]["lr_scale"] == 0.1
    assert by_name["0.weight"]["weight_decay"] == 0.0
    assert by_name["1.weight"]["lr_scale"] == 2.0
    assert by_name["1.weight"]["weight_decay"] == 0.5


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    names = [name for group in parameter_groups(model, OptimizerSection()) for name in group["names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


def test_adamw_is_fused_and_takes_the_section() -> None:
    optimizer = build_optimizer(
        nn.Linear(2, 2), OptimizerSection(lr=0.1, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.3)
    )
    assert optimizer.defaults["fused"] is True
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3, 0.0}


@given(
    steps=st.integers(2, 5000),
    warmup=st.integers(0, 500),
    kind=st.sampled_from(["constant", "cosine", "linear"]),
    final=st.floats(0.0, 1.0),
)
def test_schedule_rises_to_the_peak_and_falls_to_the_final_rate(
    steps: int, warmup: int, kind: str, final: float
) -> None:
    warmup = min(warmup, steps - 2)
    schedule = ScheduleSection(type=kind, warmup=warmup, final=final)
    rates = [learning_rate(step, steps, 1.0, schedule) for step in range(steps)]
    assert all(0.0 < rate <= 1.0 for rate in rates[:warmup])
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup] == pytest.approx(1.0)
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] == pytest.approx(1.0 if kind == "constant" else final, abs=1e-9)


def test_cosine_is_half_way_in_the_middle() -> None:
    schedule = ScheduleSection(type="cosine", warmup=10, final=0.2)
    assert learning_rate(10 + 50, 111, 1.0, schedule) == pytest.approx(
        0.2 + 0.8 * (1 + math.cos(math.pi / 2)) / 2
    )


def test_average_follows_its_definition() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.95)
    expected = model.weight.detach().double().clone()
    for step in range(1, 60):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(step)
        decay = min(0.95, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.state_dict()["weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_average_is_applied_for_a_while_only() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    with average.applied():
        assert torch.equal(model.weight, before)
    assert torch.equal(model.weight, before + 1.0)


def test_frozen_weights_are_not_averaged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert set(WeightAverage(model, 0.9).state_dict()) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("limit", [None, 0.01, 1.0, 1e3])
def test_clipping_in_the_step_is_clipping_before_it(limit: float | None) -> None:
    """Compare with torch's own clip_grad_norm_ and the plain implementation of AdamW, in double precision."""
    ours = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    theirs = copy.deepcopy(ours)
    section = OptimizerSection(lr=1e-2, weight_decay=0.1)
    fused = build_optimizer(ours, section)
    Health(fused, torch.device("cpu"))
    plain = torch.optim.AdamW(parameter_groups(theirs, section), lr=1e-2, weight_decay=0.1, foreach=False)  # type: ignore[arg-type]
    for step in range(5):
        batch = torch.randn(6, 4).double() * 10.0 ** (step - 2)
        for model in (ours, theirs):
            model.zero_grad()
            model(batch).square().sum().backward()
        norm = fused.clip(limit)
        infinite = float("inf") if limit is None else limit
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), infinite)
        torch.testing.assert_close(norm, expected)
        fused.step()
        plain.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)
