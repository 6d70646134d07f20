"""Modules, libraries and processes are the same after a run, or after a pass that must leave no trace."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.data import Dataset

from policysmith.builder.data.sampler import ResumableSampler
from policysmith.builder.module_patches import BufferSnapshot, restore_later
from policysmith.builder.training.batches import loaded_batches
from policysmith.builder.training.monitoring.quiet import quiet_libraries
from policysmith.builder.training.speed.compilation import compile_layers


class Counting(nn.Module):
    """A module that creates a buffer, replaces another, and changes a third."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", None)
        self.register_buffer("other", torch.zeros(2))
        self.register_buffer("passes", torch.zeros(()))

    def forward(self) -> None:
        self.first, self.other = torch.ones(3), torch.ones(5)
        self.passes += 1


def test_buffers_are_the_same_with_the_same_values_again() -> None:
    model = Counting()
    before = dict(model._buffers)
    snapshot = BufferSnapshot(model)
    model()
    snapshot.restore()
    assert dict(model._buffers) == before
    assert model.passes is before["passes"]
    assert float(model.passes) == 0.0
    model()
    assert float(model.passes) == 1.0


def test_attributes_are_what_they_were() -> None:
    layer = nn.Linear(2, 2)
    layer.forward = own = partial(nn.Linear.forward, layer)  # type: ignore[method-assign]
    with ExitStack() as undo:
        restore_later(undo, layer, "forward", "_compiled_call_impl")
        layer.forward = None  # type: ignore[assignment]
        layer._compiled_call_impl = print
    assert layer.forward is own
    assert "_compiled_call_impl" not in vars(layer)


def test_messages_of_libraries_are_dropped_for_a_while_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.utils._sympy.interp")
    with quiet_libraries():
        logger.warning("failed while executing %s(%s)", "pow_by_natural", [])
        logger.warning("something else")
    logger.warning("failed while executing %s(%s)", "pow_by_natural", [])
    assert caplog.messages == ["something else", "failed while executing pow_by_natural([])"]


def test_limits_of_dynamo_are_what_they_were() -> None:
    before = torch._dynamo.config.recompile_limit
    with ExitStack() as undo:
        compile_layers(nn.Sequential(nn.Linear(2, 2)), undo, trained=True)
        assert torch._dynamo.config.recompile_limit > before
    assert torch._dynamo.config.recompile_limit == before


class Slow(Dataset[Tensor]):
    """Samples that take a fiftieth of a second, by number or by number and key."""

    def __getitem__(self, index: int | tuple[int, int]) -> Tensor:
        time.sleep(0.02)
        return torch.tensor(index)


@pytest.mark.parametrize("keyed", [False, True], ids=["threads", "processes"])
def test_loaders_end_with_their_batches(keyed: bool) -> None:
    batches = loaded_batches(
        Slow(),
        ResumableSampler(800, batch_size=200, seed=0),
        lambda samples: {"x": torch.stack(samples)},
        accumulate=1,
        keyed=keyed,
        workers=1,
        device=torch.device("cpu"),
    )
    next(batches)
    workers: list[Any] = [t for t in threading.enumerate() if t.name.startswith("loader")]
    workers += multiprocessing.active_children()
    assert len(workers) == 1
    start = time.monotonic()
    batches.close()
    workers[0].join(20)
    assert not workers[0].is_alive()
    assert keyed or time.monotonic() - start < 1.0  # a batch takes four seconds
