"""What is changed in modules for the time of a training, and changed back after it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

_NONE = object()


def remember(undo: ExitStack, module: nn.Module, *names: str) -> None:
    """When `undo` closes, the module has these attributes of its own as they are now, or none where it has none."""
    for name in names:
        undo.callback(_put, module, name, vars(module).get(name, _NONE))


def _put(module: nn.Module, name: str, value: Any) -> None:
    if value is _NONE:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = value
