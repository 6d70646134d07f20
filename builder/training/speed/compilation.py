"""Layers that are compiled one by one.

One layer is compiled and serves all others of its kind, so compiling takes seconds, and graph breaks
elsewhere do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ....components.base import Learner, repeated_layers
from ... import compat
from ...module_patches import restore_later

_SHAPES = 64
"""Kinds of inputs for which one class of layers is compiled, in layers of several sizes."""


def layers_of(policy: nn.Module) -> list[nn.Module]:
    """Return the layers that the parts of a policy repeat."""
    return list(dict.fromkeys(_blocks(policy)))


def compile_layers(policy: nn.Module, undo: ExitStack, *, trained: bool) -> list[nn.Module]:
    """Compile the repeated layers of a policy, or only those that train, until `undo` closes; return them."""
    from .fx.passes import backend  # takes seconds

    undo.enter_context(compat.dynamo_limits(_SHAPES))
    layers = [
        layer
        for layer in layers_of(policy)
        if not trained or any(parameter.requires_grad for parameter in layer.parameters())
    ]
    for layer in layers:
        restore_later(undo, layer, "forward", "_compiled_call_impl")
        if isinstance(layer, FSDPModule):  # weights are gathered before the compiled part
            layer.forward = torch.compile(layer.forward, backend=backend)
        else:
            layer.compile(backend=backend)
    return layers


@contextmanager
def eager(layers: list[nn.Module]) -> Iterator[None]:
    """Run compiled layers eagerly while the context is active, for shapes and modes not worth compiling."""
    if not layers:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the layers that learners name as repeated, or those in lists of modules without learners."""
    if isinstance(module, Learner):
        return module.repeated_blocks()
    learners = [child for child in module.modules() if isinstance(child, Learner)]
    if not learners:
        return repeated_layers(module)
    return [block for child in module.children() for block in _blocks(child)]
