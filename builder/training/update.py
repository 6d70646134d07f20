"""One update of the weights: forward and backward passes, clipping, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...schemas.errors import TrainingError
from ...schemas.recipe import TrainingSection
from ..module_patches import BufferSnapshot
from ..policy import BasePolicyModel
from .distributed.collectives import Peers
from .monitoring.health import Health
from .optim.adamw import AdamW

Batch = Mapping[str, Any]
Output = dict[str, Tensor]


class Update:
    """An update of a policy's weights. Nothing in it waits for the device."""

    def __init__(
        self,
        policy: BasePolicyModel,
        model: nn.Module,
        optimizer: AdamW,
        accelerator: Accelerator,
        health: Health,
        peers: Peers,
        section: TrainingSection,
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """Update `policy`, which `model` wraps where several processes train; `phase` marks the parts for a profile."""
        self.policy, self.optimizer, self.phase = policy, optimizer, phase
        self._model, self._accelerator, self._health, self._peers = model, accelerator, health, peers
        self._clip_norm, self._sharded = section.clip_norm, section.sharding != "off"

    def __call__(self, batches: Sequence[Batch], seeds: Sequence[int]) -> tuple[list[Output], Tensor]:
        """Update the weights from the batches of a step, each with its seed; return their losses and the gradient norm."""
        outputs = []
        for batch, seed in zip(batches, seeds, strict=True):
            torch.manual_seed(seed)
            with self._accelerator.accumulate(self._model):
                outputs.append(self._backward(self._model, batch))
        self._health.agree()
        norm = self.step()
        self.optimizer.zero_grad()
        return outputs, norm

    def forward(self, batch: Batch, model: nn.Module | None = None) -> Output:
        """Return the losses of a batch."""
        with self._accelerator.autocast() if self._sharded else nullcontext():
            return check_output(type(self.policy).__name__, (model or self.policy)(batch))

    def own_gradients(self, batch: Batch) -> Output:
        """Compute this process's part of the gradients, which `exchange` adds up; return the losses."""
        return self._backward(self.policy, batch, share=1.0 / self._accelerator.num_processes)

    def exchange(self, gradients: Sequence[Tensor]) -> None:
        """Add up the gradients of all processes."""
        self._peers.add(gradients)
        self._health.agree()

    def step(self) -> Tensor:
        """Clip the gradients, update the weights, and return the norm; the gradients stay."""
        with self.phase("optimizer"):
            norm = self.optimizer.clip(self._clip_norm)
            self._health.check(norm)
            self.optimizer.step()
            self._health.count_step()
        return norm

    def snapshot(self) -> Callable[[], None]:
        """Return a function that restores what passes change: buffers, and the flag for non-finite values."""
        buffers, bad = BufferSnapshot(self.policy), self.optimizer.found_inf.clone()

        def restore() -> None:
            buffers.restore()
            self.optimizer.found_inf.copy_(bad)

        return restore

    def _backward(self, model: nn.Module, batch: Batch, share: float = 1.0) -> Output:
        """Compute the gradients of a batch that counts for `share`, and return its losses."""
        with self.phase("forward"):
            output = self.forward(batch, model)
        with self.phase("backward"):
            self._accelerator.backward(output["loss"] * share if share != 1.0 else output["loss"])
        self._health.check(output["loss"])
        return {name: value.detach() for name, value in output.items()}


def check_output(policy: str, output: Any) -> Output:
    """Return the tensors of a policy's output. Raise TrainingError if a scalar `loss` is not among them."""
    what = f"{policy}.forward must return a dict with a scalar tensor `loss`"
    if not isinstance(output, Mapping):
        raise TrainingError(f"{what}; it returns {type(output).__name__}")
    if "loss" not in output:
        names = ", ".join(f"`{name}`" for name in output) or "nothing"
        raise TrainingError(f"{what}; it returns {names} and no `loss`")
    loss = output["loss"]
    if not isinstance(loss, Tensor):
        raise TrainingError(f"{what}; its `loss` is of type {type(loss).__name__}")
    if loss.ndim != 0:
        raise TrainingError(
            f"{what}; its `loss` has the shape {tuple(loss.shape)}: take the mean over the values that count"
        )
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}
