"""A small model trained by a `StepGraph` beside one trained without, on a graph that only pretends to be one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from policysmith.builder.training.distributed.collectives import Peers
from policysmith.builder.training.optim.build import build_optimizer
from policysmith.builder.training.speed import step_graph
from policysmith.builder.training.speed.cuda_graph import fits
from policysmith.builder.training.speed.step_graph import Settings, StepGraph
from policysmith.builder.training.update import Update
from policysmith.schemas.recipe import OptimizerSection

Batch = Mapping[str, Any]
REPLAYING = Settings(busy=0.0)
"""Settings under which a host is always busy enough."""


class Model(nn.Module):
    """A model that counts its passes, and centers states by their running mean."""

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


class PlainUpdate:
    """An update of a model, without accelerate."""

    def __init__(self, policy: Model, processes: int = 1) -> None:
        self.policy, self._share = policy, 1.0 / processes
        self._wrapped = DistributedDataParallel(policy) if processes > 1 else policy
        self._peers = Peers(processes, torch.device("cpu"))
        self.optimizer = build_optimizer(policy, OptimizerSection(lr=1e-2), bf16=True)
        self.together = 0
        """Passes of the wrapped model."""

    def __call__(
        self, batches: Sequence[Batch], seeds: Sequence[int]
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        self.together += 1
        [batch], [seed] = batches, seeds
        torch.manual_seed(seed)
        output = self._backward(self._wrapped, batch, 1.0)
        norm = self.step()
        self.optimizer.zero_grad()
        return [output], norm

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.policy(batch)  # type: ignore[no-any-return]

    def own_gradients(self, batch: Batch) -> dict[str, Tensor]:
        return self._backward(self.policy, batch, self._share)

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        self._peers.add(gradients)

    def step(self) -> Tensor:
        self.optimizer.step()
        return torch.ones(())

    snapshot = Update.snapshot

    @staticmethod
    def _backward(model: nn.Module, batch: Batch, share: float) -> dict[str, Tensor]:
        output = model(batch)
        (output["loss"] * share).backward()
        return {"loss": output["loss"].detach()}


class Replayed:
    """A stand-in for captured graphs: makes the update itself, with the errors that `wrong` adds to losses."""

    wrong: Callable[[int], float] = staticmethod(lambda replay: 0.0)

    def __init__(self, update: Any, batch: Batch, seed: int) -> None:
        self._update, self._optimizer, self._batch, self.replays = update, update.optimizer, batch, 0
        self.output: dict[str, Tensor] = {}

    def fits(self, batch: Batch) -> bool:
        return fits(self._batch, batch)

    def compute(self, batch: Batch, seed: int) -> None:
        self.replays += 1
        found = self._update.own_gradients(batch)
        self.output = {"loss": found["loss"] + self.wrong(self.replays)}
        if not self.output["loss"].isfinite():
            self._optimizer.found_inf.fill_(1.0)
        self.gradients = self._optimizer.gradients()
        self._optimizer.zero_grad()

    def finish(self) -> Tensor:
        for weight, gradient in zip(self._optimizer.weights, self.gradients, strict=True):
            weight.grad = gradient
        norm: Tensor = self._update.step()
        self._optimizer.zero_grad()
        return norm

    def free(self) -> None:
        self.output = {}


def never_slower(trial: step_graph.Trial) -> step_graph.Stage:
    trial._context.note("replayed")
    return trial.settled()


class Pair:
    """A model that replays and one that does not, in one process or in several with their own batches."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        wrong: Callable[[int], float] = lambda replay: 0.0,
        settles: bool = True,
        processes: int = 1,
        rank: int = 0,
        settings: Settings = REPLAYING,
    ) -> None:
        self._batches = torch.Generator().manual_seed(rank)
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(step_graph, "error_on_sync", nullcontext)
        monkeypatch.setattr(
            step_graph, "CapturedUpdate", type("Graphs", (Replayed,), {"wrong": staticmethod(wrong)})
        )
        if settles:
            monkeypatch.setattr(step_graph.Trial, "verdict", never_slower)
        self.notes: list[str] = []
        torch.manual_seed(0)
        models = Model(), Model()
        models[1].load_state_dict(models[0].state_dict())
        self.ours, self.theirs = (PlainUpdate(model, processes) for model in models)
        self.graph = StepGraph(
            self.ours,  # type: ignore[arg-type]
            Peers(processes, torch.device("cpu")),
            self.notes.append,
            settings,
        )

    def take(self, steps: int, size: Callable[[int], int] = lambda step: 4) -> None:
        for step in range(steps):
            batch = {"state": torch.randn(size(step), 3, generator=self._batches)}
            [output], _ = self.graph([batch], [step])
            assert set(output) == {"loss"}
            self.theirs([batch], [step])

    def check(self) -> None:
        ours, theirs = (update.policy.state_dict() for update in (self.ours, self.theirs))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert float(self.ours.optimizer.found_inf) == 0.0
