"""A small model's run by a `StepGraph` beside one without, on a graph that only pretends to be one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from policysmith.builder.training.distributed.collectives import Peers
from policysmith.builder.training.optim.adamw import adamw
from policysmith.builder.training.speed import step_graph
from policysmith.builder.training.speed.cuda_graph import Update, alike
from policysmith.builder.training.speed.step_graph import StepGraph
from policysmith.schemas.recipe import OptimizerSection


class Model(nn.Module):
    """Counts its passes, and centres states by a mean over those that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        assert isinstance(self.passes, Tensor)
        assert isinstance(self.mean, Tensor)
        self.passes.add_(1)
        self.mean.lerp_(batch["state"].mean(0), 0.1)
        return {"loss": self.layer(batch["state"] - self.mean.clone()).square().mean()}


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
        self.gradients = self._optimizer.gradients()
        self._optimizer.zero_grad()

    def finish(self) -> Tensor:
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for weight, gradient in zip(weights, self.gradients, strict=True):
            weight.grad = gradient
        norm = self._update.step()
        self._optimizer.zero_grad()
        return norm

    def free(self) -> None:
        self.output = {}


def never_slower(graph: StepGraph) -> None:
    graph._undecided = False
    graph._settle("replayed")


class Trial:
    """Both runs, in one process or in several, of which each has its own batches."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        wrong: Callable[[int], float] = lambda replay: 0.0,
        settles: bool = True,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        self._processes = processes
        self.together = 0
        """Passes of the wrapped policy."""
        self._batches = torch.Generator().manual_seed(rank)
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(step_graph, "BUSY", 0.0)
        monkeypatch.setattr(step_graph, "without_waiting", nullcontext)
        monkeypatch.setattr(
            step_graph, "CapturedUpdate", type("Graphs", (Replayed,), {"wrong": staticmethod(wrong)})
        )
        if settles:
            monkeypatch.setattr(StepGraph, "_decide", never_slower)
        self.notes: list[str] = []
        torch.manual_seed(0)
        self.ours, self.theirs = Model(), Model()
        self.theirs.load_state_dict(self.ours.state_dict())
        self._wrapped = [
            DistributedDataParallel(model) if processes > 1 else model for model in (self.ours, self.theirs)
        ]
        self.optimizer, self.plain = (self._optimizer(model) for model in (self.ours, self.theirs))
        self.graph = self._graph()

    @staticmethod
    def _optimizer(model: Model) -> Any:
        return adamw(model, OptimizerSection(lr=1e-2), bf16=True)

    def _graph(self) -> StepGraph:
        peers = Peers(self._processes, torch.device("cpu"))

        def passed(model: nn.Module, share: float, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            output = model(batch)
            (output["loss"] * share).backward()
            return {"loss": output["loss"].detach()}

        def together(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            self.together += 1
            return passed(self._wrapped[0], 1.0, batch)

        def step() -> Tensor:
            self.optimizer.step()
            return torch.ones(())

        update = Update(
            loss=self.ours,
            gradients=partial(passed, self.ours, 1.0 / self._processes),
            together=together,
            exchange=peers.add,
            step=step,
            phase=lambda name: nullcontext(),
        )
        return StepGraph(update, self.ours, self.optimizer, peers, self.notes.append)

    def take(self, steps: int, size: Callable[[int], int] = lambda step: 4) -> None:
        for step in range(steps):
            batch = {"state": torch.randn(size(step), 3, generator=self._batches)}
            output, _ = self.graph(batch, step)
            assert set(output) == {"loss"}
            self._wrapped[1](batch)["loss"].backward()
            self.plain.step()
            self.plain.zero_grad()

    def check(self) -> None:
        for ours, theirs in zip(
            self.ours.state_dict().values(), self.theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs)
        assert float(self.optimizer.found_inf) == 0.0
