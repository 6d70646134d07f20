"""What is changed in modules for a time, and changed back after it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

_NONE = object()


def remember(undo: ExitStack, module: nn.Module, *names: str) -> None:
    """When `undo` closes, the module has these attributes of its own as they are now, or none where it has none."""
    for name in names:
        undo.callback(_put, module, name, vars(module).get(name, _NONE))


class Statistics:
    """The buffers of a model as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self._tables = [(module, dict(module._buffers)) for module in model.modules()]
        self._values = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def put_back(self) -> None:
        """Let the model have the same buffers, with the same values, again."""
        for module, table in self._tables:
            module._buffers.clear()
            module._buffers.update(table)
        with torch.no_grad():
            for buffer, value in self._values:
                buffer.copy_(value)


def _put(module: nn.Module, name: str, value: Any) -> None:
    if value is _NONE:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = value
