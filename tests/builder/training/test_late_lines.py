"""Log lines that are read some steps late, as those of a GPU are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policysmith.builder import Builder
from policysmith.builder.training import loop
from policysmith.schemas.errors import TrainingError

from .test_run import break_loss


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read log lines two steps late, as on a GPU."""
    monkeypatch.setitem(loop.LAG, "cpu", 2)


def lines(run: Path) -> list[dict[str, float]]:
    timed = {"samples_per_second", "data_wait", "tflops"}
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in found if "step" in line]


def test_lines_that_are_read_late_say_the_same(
    tiny: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tiny["training"] |= {"steps": 8, "save_every": 5, "log_every": 1}
    Builder.from_recipe(tiny).train(output=tmp_path / "now", device="cpu")
    request.getfixturevalue("late")
    Builder.from_recipe(tiny).train(output=tmp_path / "late", device="cpu")
    assert lines(tmp_path / "late") == lines(tmp_path / "now")
    assert [line["step"] for line in lines(tmp_path / "late")] == [*range(1, 9)]
    rates = [
        json.loads(line).get("samples_per_second", 0.0)
        for line in (tmp_path / "late" / "log.jsonl").read_text().splitlines()
    ]
    assert max(rates) < 1e5  # lines that are read at once took their time all the same


@pytest.mark.usefixtures("late")
def test_what_is_noticed_late_keeps_the_weights_before_it(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["training"] |= {"steps": 8, "log_every": 1, "keep": 5}
    builder = Builder.from_recipe(tiny)
    builder.check()
    break_loss(monkeypatch, at=3)
    with pytest.raises(TrainingError, match=r"at step 2 .*the weights before it are in .*step-00000002"):
        builder.train(output=tmp_path / "run", device="cpu")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


@pytest.mark.usefixtures("late")
def test_an_error_loses_no_line(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policysmith.components.heads.mlp import MlpHead

    tiny["training"] |= {"steps": 8, "log_every": 1}
    builder = Builder.from_recipe(tiny)
    builder.check()
    good, calls = MlpHead.loss, [-1]  # the first is counted for its operations

    def fails(self: MlpHead, *args: Any) -> Any:
        calls[0] += not args[1].is_meta
        if calls[0] == 5:
            raise RuntimeError("the plug was pulled")
        return good(self, *args)

    monkeypatch.setattr(MlpHead, "loss", fails)
    with pytest.raises(RuntimeError, match="plug"):
        builder.train(output=tmp_path / "run", device="cpu")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.usefixtures("late")
def test_an_error_is_not_hidden_by_a_loss_before_it(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise the error at once: other processes do not know of it, so nothing may be agreed upon with them."""
    tiny["training"] |= {"steps": 8, "log_every": 1}
    builder = Builder.from_recipe(tiny)
    builder.check()
    break_loss(monkeypatch, at=3)
    update, taken = loop._Run.take_step, []

    def fails(self: loop._Run) -> None:
        taken.append(1)
        if len(taken) == 4:
            raise RuntimeError("the plug was pulled")
        update(self)

    monkeypatch.setattr(loop._Run, "take_step", fails)
    with pytest.raises(RuntimeError, match="plug"):
        builder.train(output=tmp_path / "run", device="cpu")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]
    assert not list((tmp_path / "run").glob("checkpoints/*"))
