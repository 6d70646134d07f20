"""Layers of decoder-only language models, against torch's own and formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from policysmith.components.layers.basic import waves
from policysmith.components.layers.blocks import decoder
from policysmith.components.layers.blocks.decoder import AdaRmsNorm, GatedMlp, RmsNorm, grouped_attention
from policysmith.components.layers.rotary import apply_rotary, rotary_table


@pytest.mark.parametrize(("family", "offset", "eps"), [("gemma", 1.0, 1e-6), ("llama", 0.0, 1e-5)])
def test_rms_norm_is_torchs(family: Any, offset: float, eps: float) -> None:
    part, tokens = RmsNorm(8, family), torch.randn(2, 3, 8) * 1e-2
    assert torch.equal(offset + part.weight, torch.ones(8))
    with torch.no_grad():
        part.weight.add_(torch.randn(8))
    kept, normal, gate = part(tokens)
    assert gate is None
    assert kept is tokens
    torch.testing.assert_close(normal, F.rms_norm(tokens, (8,), offset + part.weight, eps))


def test_ada_rms_norm_starts_plain_and_shut() -> None:
    _, normal, gate = AdaRmsNorm(8, 5)(tokens := torch.randn(2, 3, 8), torch.randn(2, 5))
    torch.testing.assert_close(normal, F.rms_norm(tokens, (8,), eps=1e-6))
    assert not gate.any()


@pytest.mark.parametrize("kernel", [False, True], ids=["torch", "kernel"])
def test_ada_rms_norm_is_the_formula_behind_a_gated_branch(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "uses_kernel", lambda values: kernel)
    part = AdaRmsNorm(8, 5)
    torch.nn.init.normal_(part.modulation.weight)
    tokens, branch, condition, gate = (
        torch.randn(2, 3, 8),
        torch.randn(2, 3, 8),
        torch.randn(2, 5),
        torch.randn(2, 8),
    )
    hidden, normal, following = part(tokens, condition, branch, gate)
    scale, shift, expected = part.modulation(condition)[:, None].chunk(3, dim=-1)
    torch.testing.assert_close(hidden, tokens + gate[:, None] * branch)
    rms = hidden.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(normal, hidden / rms * (1.0 + scale) + shift)
    assert torch.equal(following, expected[:, 0])


def test_a_plain_norm_adds_the_branch() -> None:
    tokens, branch = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    hidden, normal, _ = RmsNorm(8, "llama")(tokens, None, branch)
    assert torch.equal(hidden, tokens + branch)
    torch.testing.assert_close(normal, F.rms_norm(hidden, (8,), eps=1e-5))


def test_norms_are_of_float32_in_bfloat16() -> None:
    tokens = (torch.randn(2, 3, 256) * 30).to(torch.bfloat16)
    _, ours, _ = RmsNorm(256, "gemma").to(torch.bfloat16)(tokens)
    assert torch.equal(ours, F.rms_norm(tokens.float(), (256,), eps=1e-6).to(torch.bfloat16))
    part = AdaRmsNorm(256, 5).to(torch.bfloat16)
    torch.nn.init.normal_(part.modulation.bias)
    _, ours, _ = part(tokens, torch.zeros(2, 5, dtype=torch.bfloat16))
    scale, shift, _ = part.modulation.bias.float().chunk(3)
    exact = F.rms_norm(tokens.float(), (256,), eps=1e-6) * (1.0 + scale) + shift
    torch.testing.assert_close(ours, exact.to(torch.bfloat16), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_gated_mlp_is_the_formula(family: Any) -> None:
    part, tokens = GatedMlp(4, 6, family), torch.randn(2, 3, 4)
    gate = tokens @ part.gate.weight.T
    cubic = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    act = cubic if family == "gemma" else gate / (1 + torch.exp(-gate))
    torch.testing.assert_close(part(tokens), (act * (tokens @ part.up.weight.T)) @ part.down.weight.T)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_attention_is_torchs(groups: int, masked: bool) -> None:
    query = torch.randn(2, 4, 3, 6)
    key, value = torch.randn(2, groups, 5, 6), torch.randn(2, groups, 5, 6)
    mask = torch.rand(2, 1, 3, 5) < 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    ours = grouped_attention(query, key, value, None if mask is None else mask.repeat(1, 1, 4 // groups, 1))
    torch.testing.assert_close(ours, theirs.transpose(1, 2).flatten(2))


def test_waves_are_the_formula() -> None:
    times, periods = (0.0, 0.001, 0.37, 1.0), [4e-3 * 1000 ** (i / 3) for i in range(4)]
    assert periods[-1] == pytest.approx(4.0)
    for time, row in zip(times, waves(torch.tensor(times, dtype=torch.float64), 8), strict=True):
        angles = [2 * math.pi * time / period for period in periods]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(
            row.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0
        )


def test_rotated_scores_know_distances_only() -> None:
    query, key = torch.randn(1, 1, 1, 6), torch.randn(1, 1, 1, 6)

    def score(first: int, second: int) -> float:
        ends = [
            apply_rotary(x, rotary_table(torch.tensor([[at]]), 6, 100.0))
            for x, at in ((query, first), (key, second))
        ]
        return (ends[0] * ends[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


@pytest.mark.parametrize("steps", [None, 3], ids=["of_the_chunk", "of_each_step"])
def test_a_branch_in_parts_is_their_sum(steps: int | None) -> None:
    torch.manual_seed(0)
    norm = AdaRmsNorm(8, 4)
    torch.nn.init.normal_(norm.modulation.weight)
    tokens, parts = torch.randn(2, 3, 8), torch.randn(4, 2, 3, 8)
    condition = torch.randn(2, 4) if steps is None else torch.randn(2, steps, 4)
    with torch.no_grad():
        _, _, gate = norm(tokens, condition)
        found = norm(tokens, condition, parts, gate)
        expected = norm(tokens, condition, parts.sum(0), gate)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
