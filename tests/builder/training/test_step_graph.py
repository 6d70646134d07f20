"""Decisions about replaying steps, with a graph that only pretends to be one; real ones need a GPU (`test_gpu.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policysmith.builder.capture import CaptureError
from policysmith.builder.training.speed import step_graph
from policysmith.builder.training.speed.cuda_graph import fits
from policysmith.builder.training.speed.step_graph import Settings, differs

from .replays import Pair

TRIED, CHECKED, TIMED, UNFIT = (
    Settings().first_replay,
    Settings().checked,
    Settings().timed,
    Settings().unfit,
)

CAPTURED: dict[str, Any] = {"state": torch.zeros(2, 3), "task.key": ["open", "open"]}


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({"state": torch.ones(2, 3)}, True),
        ({"state": torch.ones(2, 4)}, False),
        ({"state": torch.ones(2, 3).double()}, False),
        ({"state": [1.0]}, False),
        ({"task.key": ["open", "open"]}, True),
        ({"task.key": ["close", "push"]}, False),
        ({"more": torch.zeros(2)}, False),
        ({"task.key": np.array(["open", "open"])}, False),
    ],
    ids=str,
)
def test_tensors_may_have_other_values_and_nothing_else_may(change: dict[str, Any], holds: bool) -> None:
    assert fits(CAPTURED, CAPTURED | change) == holds


def test_a_replay_that_is_not_finite_differs() -> None:
    assert differs(1.0, math.nan)
    assert differs(1.0, math.inf)
    assert differs(1.0, 1.1)
    assert not differs(1.0, 1.001)
    assert not differs(math.nan, math.nan)


def test_replays_update_weights_and_statistics_as_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.take(TRIED + CHECKED + TIMED + 3)
    assert pair.notes == ["replayed"]
    pair.check()


def test_a_graph_that_is_slower_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch, settles=False)
    assert isinstance(pair.graph.stage, step_graph.Eager)
    pair.graph.stage.times.eager = [0.0] * 100  # whatever else the machine does
    pair.take(TRIED + CHECKED + TIMED + 3)
    (note,) = pair.notes
    assert note.startswith("no CUDA graph: a step takes")
    pair.check()


@pytest.mark.parametrize("error", [1.0, math.nan], ids=str)
def test_a_replay_that_goes_wrong_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    pair = Pair(monkeypatch, lambda replay: error if replay == CHECKED else 0.0)
    pair.take(TRIED + CHECKED + 3)
    (note,) = pair.notes
    assert "no CUDA graph: a loss of" in note
    assert "did not see" not in note
    pair.check()


def test_replays_are_checked_again_and_given_up_late(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(busy=0.0, again=20)
    pair = Pair(monkeypatch, lambda replay: 1.0 if replay > 20 else 0.0, settings=settings)
    pair.take(TRIED + 30)
    assert pair.notes[0] == "replayed"
    assert pair.notes[1].endswith("up to 20 steps before this one did not see them change")
    pair.check()


def test_batches_of_another_size_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.take(TRIED + 20, lambda step: 3 if step > TRIED and step % 4 == 0 else 4)
    assert pair.notes == ["replayed"]
    pair.check()


def test_a_graph_that_holds_for_few_batches_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch, settles=False)
    pair.take(TRIED + UNFIT + 3, lambda step: 4 if step < TRIED else 3)
    assert pair.notes == [
        f"no CUDA graph: of {UNFIT + 1} batches, {UNFIT + 1} had other sizes or texts than the one that it was made of"
    ]
    pair.check()


def test_a_step_that_waits_is_taken_again_from_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    gradients, seen = pair.ours.own_gradients, []

    def waits(batch: Mapping[str, Any]) -> dict[str, Tensor]:
        output = gradients(batch)
        seen.append(1)
        if len(seen) == 1:
            raise RuntimeError("called a synchronizing CUDA operation")
        return output

    monkeypatch.setattr(pair.ours, "own_gradients", waits)
    pair.take(TRIED + 3)
    assert pair.notes == ["no CUDA graph: a step waits for the GPU"]
    pair.check()


def test_a_step_that_cannot_be_captured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)

    def fails(*args: Any) -> None:
        raise CaptureError("not permitted")

    monkeypatch.setattr(step_graph, "CapturedUpdate", fails)
    pair.take(TRIED + 3)
    assert pair.notes == ["no CUDA graph: a step could not be captured (not permitted)"]
    pair.check()


def test_a_host_that_is_far_ahead_needs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch, settings=Settings(busy=math.inf))
    pair.take(TRIED + 3)
    (note,) = pair.notes
    assert note.startswith("no CUDA graph: the host is busy for")
    pair.check()
