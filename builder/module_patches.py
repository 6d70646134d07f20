"""Temporary changes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_ABSENT = object()


def restore_later(undo: ExitStack, module: nn.Module, *names: str) -> None:
    """Restore these instance attributes of a module when `undo` closes; delete those that are missing now."""
    for name in names:
        undo.callback(_restore, module, name, vars(module).get(name, _ABSENT))


@contextmanager
def training_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put a module into training or evaluation mode while the context is active."""
    was_training = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(was_training)


class BufferSnapshot:
    """The buffers of a model, with their values at one time."""

    def __init__(self, model: nn.Module) -> None:
        self._tables = [(module, dict(module._buffers)) for module in model.modules()]
        self._values = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def restore(self) -> None:
        """Give the model the same buffers again, with the same values."""
        for module, table in self._tables:
            module._buffers.clear()
            module._buffers.update(table)
        with torch.no_grad():
            for buffer, value in self._values:
                buffer.copy_(value)


def _restore(module: nn.Module, name: str, value: Any) -> None:
    if value is _ABSENT:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = value
