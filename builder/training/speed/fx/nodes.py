"""Reads nodes of a graph that torch.compile has traced."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_linear(node: Any) -> bool:
    """Whether a linear layer is all that a node is: one with an adapter, in float8 or of quantised weights is more."""
    if not isinstance(node, fx.Node) or node.target is not F.linear:
        return False
    return not is_traceable_wrapper_subclass(example(argument(node, 1, "weight")))


def example(node: Any) -> Any:
    """The tensor that stood for a node's when it was traced, or None; None too where a transform, as vmap, has it."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    if not isinstance(found, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(found):
        return None
    return found


def argument(node: Any, at: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by its place or by its name."""
    return node.args[at] if at < len(node.args) else node.kwargs.get(name, default)


def follow(nodes: list[fx.Node], last: fx.Node) -> bool:
    """Whether these stand directly before the last, in any order, and nothing else between them.

    Then nothing between them changes a tensor or a mode.
    """
    node, before = last.prev, set(nodes)
    while node in before:
        before.remove(node)
        node = node.prev
    return not before
