"""Modules are the same after a run, or after a pass that must leave no trace."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from policysmith.builder.training.module_patches import BufferSnapshot, restore_later


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
