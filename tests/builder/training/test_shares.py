"""A step is the same however it is cut into batches, even if chunks reach beyond the end of episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder, RecipePolicy

HEADS: list[dict[str, Any]] = [
    {"type": "mlp", "hidden": [16]},
    {"type": "gmm", "hidden": [16], "modes": 2},
    {"type": "fast", "width": 16, "depth": 1, "heads": 2, "max_tokens": 200},
    {"type": "act", "width": 16, "heads": 2, "feedforward": 16, "encoder_layers": 1, "dropout": 0.0},
]
"""Heads; the last has two means over different values, once its latent is not random."""


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def padded(tiny: dict[str, Any]) -> dict[str, Any]:
    del tiny["policy"]["backbones"]["vision"]
    tiny["transforms"] = tiny["transforms"][-1:]
    tiny["data"]["horizon"] = 24
    tiny["training"] |= {"clip_norm": None, "optimizer": {"lr": 1e-3}}
    return tiny


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["type"])
def test_accumulated_batches_make_the_step_of_one(
    head: dict[str, Any], padded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randn_like", lambda values, **options: torch.full_like(values, 0.3))
    padded["policy"]["head"] = head
    found = []
    for parts in (1, 2, 4):
        padded["training"] |= {"batch_size": 4 // parts, "accumulate": parts, "steps": 2}
        Builder.from_recipe(padded).train(output=tmp_path / str(parts), device="cpu")
        found.append([line for line in lines(tmp_path / str(parts)) if "loss" in line])
    terms = {*found[0][0]} - {"samples_per_second", "data_wait", "tflops"}
    assert terms >= {"loss", "grad_norm"}
    for cut in found[1:]:
        for ours, theirs in zip(cut, found[0], strict=True):
            for name in terms:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_no_epoch_ends_within_a_step(padded: dict[str, Any], tmp_path: Path) -> None:
    """The second step begins an epoch, although half of its samples would still be left for its parts."""
    padded["data"]["episodes"] = [0]
    losses = []
    for parts in (1, 4):
        padded["training"] |= {"batch_size": 60 // parts, "accumulate": parts, "steps": 3}
        Builder.from_recipe(padded).train(output=tmp_path / str(parts), device="cpu")
        losses.append([line["loss"] for line in lines(tmp_path / str(parts)) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_policy_that_counts_nothing_says_that_batches_weigh_alike(
    padded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecipePolicy, "loss_counts", lambda self, batch: {})
    padded["training"] |= {"batch_size": 2, "accumulate": 2, "steps": 1}
    Builder.from_recipe(padded).train(output=tmp_path, device="cpu")
    assert any("the 2 batches of a step weigh alike" in line.get("note", "") for line in lines(tmp_path))


def test_a_batch_that_is_a_step_is_not_counted(
    padded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(self: RecipePolicy, batch: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("counted")

    monkeypatch.setattr(RecipePolicy, "loss_counts", counted)
    padded["training"]["steps"] = 1
    Builder.from_recipe(padded).train(output=tmp_path, device="cpu")
