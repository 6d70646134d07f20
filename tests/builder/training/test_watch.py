"""Numbers in the log are what their names say."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from policysmith.builder import Builder, RecipePolicy
from policysmith.builder.training import loop
from policysmith.builder.training.monitoring.meter import Meter

CPU = torch.device("cpu")
GOOD = torch.zeros(())


def take(meter: Meter, *seconds: float, loss: float = 1.0) -> None:
    for each in seconds:
        time.sleep(each)
        meter.add({"loss": torch.tensor(loss)})
        meter.count_step(torch.tensor(1.0))


def test_the_speed_leaves_out_the_first_step_and_pauses() -> None:
    meter = Meter(10, CPU)
    take(meter, 0.5, 0.02, 0.02)
    first, _ = meter.read(meter.interval(3, 1.0, GOOD))
    time.sleep(0.5)
    meter.restart()
    take(meter, 0.02, 0.02)
    second, _ = meter.read(meter.interval(5, 1.0, GOOD))
    assert meter.overall is not None
    for speed in (first["samples_per_second"], second["samples_per_second"], meter.overall):
        assert 150.0 < speed <= 500.0
    assert meter.taken == 5


def test_a_first_step_that_is_logged_alone_has_its_own_speed() -> None:
    meter = Meter(10, CPU)
    take(meter, 0.2)
    values, finite = meter.read(meter.interval(1, 1.0, GOOD))
    assert finite
    assert values["samples_per_second"] == pytest.approx(50.0, rel=0.3)
    assert meter.overall is None


def test_slow_compilation_does_not_count(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop._Run.take_step

    def slow(self: loop._Run) -> None:
        time.sleep(2.0 if self.step == 0 else 0.0)
        update(self)

    monkeypatch.setattr(loop._Run, "take_step", slow)
    result = Builder.from_recipe(tiny).train(output=tmp_path, device="cpu")
    assert result.samples_per_second is not None
    assert result.samples_per_second > 4 * 4 / 2.0


def test_counting_operations_changes_neither_weights_nor_statistics(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder.from_recipe(tiny).override({"training.steps": 1})
    counted = builder.train(output=tmp_path / "counted", device="cpu").policy.state_dict()
    monkeypatch.setattr(loop._Run, "_count_operations", lambda *_: None)
    plain = builder.train(output=tmp_path / "plain", device="cpu").policy.state_dict()
    assert all(torch.equal(counted[name], plain[name]) for name in plain)


def test_a_warm_up_longer_than_the_run_is_said(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["training"]["schedule"] = {"warmup": 100}
    Builder.from_recipe(tiny).train(output=tmp_path, device="cpu")
    notes = [json.loads(line).get("note", "") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("W003" in note and "ends at 4% of" in note for note in notes)
    whole = Builder.from_recipe(tiny).override({"training.schedule.warmup": 4})
    assert "W003 warmup-unfinished" not in {warning.code for warning in whole.warnings}


def test_a_policy_in_validation_is_told_its_shares_once(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, calls = RecipePolicy.loss_counts, [0]

    def seen(self: RecipePolicy, batch: Any) -> Any:
        calls[0] += 1
        return counts(self, batch)

    monkeypatch.setattr(RecipePolicy, "loss_counts", seen)
    builder = Builder.from_recipe(tiny).override(
        {"data.validation": 0.25, "training.save_every": 2, "training.batch_size": 50}
    )
    builder.train(output=tmp_path, device="cpu")
    _, held_out = builder.datasets()
    batches = -(-len(held_out) // 50)  # type: ignore[arg-type]
    assert calls[0] == 3 * batches  # for the total, and for each of two validations
