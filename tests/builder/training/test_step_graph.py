"""When steps are replayed and when not, with a graph that only pretends to be one; real ones need a GPU (`test_gpu.py`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policysmith.builder.training import step_graph
from policysmith.builder.training.optimization import adamw
from policysmith.builder.training.step_graph import (
    CHECKED,
    OTHERS,
    TIMED,
    WARM,
    CaptureFailed,
    StepGraph,
    Update,
    alike,
    differs,
)
from policysmith.schemas.recipe import OptimizerSection

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
    assert alike(CAPTURED, CAPTURED | change) == holds


def test_a_replay_that_is_not_finite_differs() -> None:
    assert differs(1.0, math.nan)
    assert differs(1.0, math.inf)
    assert differs(1.0, 1.1)
    assert not differs(1.0, 1.001)
    assert not differs(math.nan, math.nan)


class Model(nn.Module):
    """Counts its passes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        assert isinstance(self.passes, Tensor)
        self.passes.add_(1)
        return {"loss": self.layer(batch["state"]).square().mean()}


class Replayed:
    """Stands for captured graphs: makes the update itself, with what it may get wrong."""

    wrong: Callable[[int], float] = staticmethod(lambda replay: 0.0)

    def __init__(self, update: Update, optimizer: Any, batch: Mapping[str, Any], seed: int) -> None:
        self._update, self._optimizer, self._batch, self.replays = update, optimizer, batch, 0
        self.output: dict[str, Tensor] = {}

    def fits(self, batch: Mapping[str, Any]) -> bool:
        return alike(self._batch, batch)

    def compute(self, batch: Mapping[str, Any], seed: int) -> None:
        self.replays += 1
        found = self._update.gradients(batch)
        self.output = {"loss": found["loss"] + self.wrong(self.replays)}
        if not self.output["loss"].isfinite():
            self._optimizer.found_inf.fill_(1.0)
        self._gradients = self._optimizer.gradients()
        self._optimizer.zero_grad()

    def finish(self) -> Tensor:
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for weight, gradient in zip(weights, self._gradients, strict=True):
            weight.grad = gradient
        norm = self._update.step()
        self._optimizer.zero_grad()
        return norm

    def free(self) -> None:
        self.output = {}


class Trial:
    """A run of a small model by a `StepGraph`, beside one without."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        wrong: Callable[[int], float] = lambda replay: 0.0,
        settles: bool = True,
    ) -> None:
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(step_graph, "BUSY", 0.0)
        monkeypatch.setattr(step_graph, "_without_waiting", nullcontext)
        monkeypatch.setattr(
            step_graph, "_Graphs", type("Graphs", (Replayed,), {"wrong": staticmethod(wrong)})
        )
        if settles:
            monkeypatch.setattr(StepGraph, "_compare", lambda graph: graph._settle("replayed"))
        self.notes: list[str] = []
        torch.manual_seed(0)
        self.ours, self.theirs = Model(), Model()
        self.theirs.load_state_dict(self.ours.state_dict())
        (self.graph, self.optimizer), (_, self.plain) = self._made(self.ours), self._made(self.theirs)

    def _made(self, model: Model) -> tuple[StepGraph, Any]:
        optimizer: Any = adamw(model, OptimizerSection(lr=1e-2), bf16=True)

        def gradients(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            output = model(batch)
            output["loss"].backward()
            return {"loss": output["loss"].detach()}

        def step() -> Tensor:
            optimizer.step()
            return torch.ones(())

        update = Update(model, gradients, step, lambda name: nullcontext())
        return StepGraph(update, model, optimizer, self.notes.append), optimizer

    def take(self, steps: int, size: Callable[[int], int] = lambda step: 4) -> None:
        for step in range(steps):
            batch = {"state": torch.randn(size(step), 3)}
            output, _ = self.graph(batch, step)
            assert set(output) == {"loss"}
            self.theirs(batch)["loss"].backward()
            self.plain.step()
            self.plain.zero_grad()

    def check(self) -> None:
        for ours, theirs in zip(
            self.ours.state_dict().values(), self.theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs)
        assert float(self.optimizer.found_inf) == 0.0


BEFORE = WARM + TIMED + 1


def test_replays_update_weights_and_statistics_as_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    trial.take(BEFORE + CHECKED + TIMED + 3)
    assert trial.notes == ["replayed"]
    trial.check()


def test_a_graph_that_is_slower_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch, settles=False)
    finish = step_graph._Graphs.finish

    def slow(graphs: Any) -> Tensor:
        time.sleep(0.02)
        return finish(graphs)

    monkeypatch.setattr(step_graph._Graphs, "finish", slow)
    trial.take(BEFORE + CHECKED + TIMED + 3)
    (note,) = trial.notes
    assert note.startswith("no CUDA graph: a step takes")
    trial.check()


@pytest.mark.parametrize("error", [1.0, math.nan], ids=str)
def test_a_replay_that_goes_wrong_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    trial = Trial(monkeypatch, lambda replay: error if replay == CHECKED else 0.0)
    trial.take(BEFORE + CHECKED + 3)
    (note,) = trial.notes
    assert "no CUDA graph: a loss of" in note
    assert "did not see" not in note
    trial.check()


def test_replays_are_checked_again_and_given_up_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph, "AGAIN", 20)
    trial = Trial(monkeypatch, lambda replay: 1.0 if replay > 20 else 0.0)
    trial.take(BEFORE + 30)
    assert trial.notes[0] == "replayed"
    assert trial.notes[1].endswith("up to 20 steps before this one did not see them change")
    trial.check()


def test_batches_of_another_size_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    trial.take(BEFORE + 20, lambda step: 3 if step > BEFORE and step % 4 == 0 else 4)
    assert trial.notes == ["replayed"]
    trial.check()


def test_a_graph_that_holds_for_few_batches_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    trial.take(BEFORE + OTHERS + 3, lambda step: 4 if step < BEFORE else 3)
    assert trial.notes == [
        f"no CUDA graph: of {OTHERS + 1} batches, {OTHERS + 1} had other sizes or texts than the one that it was made of"
    ]
    trial.check()


def test_a_step_that_waits_is_taken_again_from_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    gradients, seen = trial.graph._update.gradients, []

    def waits(batch: Mapping[str, Any]) -> dict[str, Tensor]:
        output = gradients(batch)
        seen.append(1)
        if len(seen) == BEFORE:
            raise RuntimeError("called a synchronizing CUDA operation")
        return output

    object.__setattr__(trial.graph._update, "gradients", waits)
    trial.take(BEFORE + 3)
    assert trial.notes == ["no CUDA graph: a step waits for the GPU"]
    trial.check()


def test_a_step_that_cannot_be_captured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)

    def fails(*args: Any) -> None:
        raise CaptureFailed("not permitted")

    monkeypatch.setattr(step_graph, "_Graphs", fails)
    trial.take(BEFORE + 3)
    assert trial.notes == ["no CUDA graph: a step could not be captured (not permitted)"]
    trial.check()


def test_a_host_that_is_far_ahead_needs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    monkeypatch.setattr(step_graph, "BUSY", math.inf)
    trial.take(BEFORE + 3)
    (note,) = trial.notes
    assert note.startswith("no CUDA graph: the host is busy for")
    trial.check()
