"""Compiles a policy's repeated layers one by one.

One layer is compiled and serves all its like, so that compiling takes seconds, and graph breaks elsewhere do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ...components.base import Learner
from ...components.layers import repeated

_SHAPES = 64
"""Kinds of inputs that one class of layers may meet, in layers of several sizes, before it is compiled no more."""


def compiled_blocks(policy: nn.Module, *, trained: bool) -> list[nn.Module]:
    """Compile the layers that the parts of a policy repeat, or the `trained` ones, in place; gives them."""
    import torch._dynamo  # takes seconds

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 4 * _SHAPES
    )
    blocks = [
        block
        for block in dict.fromkeys(_blocks(policy))
        if not trained or any(parameter.requires_grad for parameter in block.parameters())
    ]
    for block in blocks:
        block.compile()
    return blocks


def as_before(blocks: list[nn.Module]) -> None:
    """Let layers run uncompiled again."""
    for block in blocks:
        block._compiled_call_impl = None


@contextmanager
def eagerly(blocks: list[nn.Module]) -> Iterator[None]:
    """Layers that are compiled run as they are: for a pass or two of another shape or mode, compiling would not pay."""
    if not blocks:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The layers that learners say they repeat, or that stand in a list where no learner says anything."""
    if isinstance(module, Learner):
        return module.repeated_blocks()
    learners = [child for child in module.modules() if isinstance(child, Learner)]
    if not learners:
        return repeated(module)
    return [block for child in module.children() for block in _blocks(child)]
