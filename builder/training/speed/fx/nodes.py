"""Questions about nodes of a graph that torch.compile has traced."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from .... import compat


def is_linear(node: Any) -> bool:
    """Return whether a node is a plain linear layer, without adapter or quantized weights."""
    if not isinstance(node, fx.Node) or node.target is not F.linear:
        return False
    return not compat.is_wrapper_tensor(example(argument(node, 1, "weight")))


def example(node: Any) -> Any:
    """Return the example tensor of a node; None if it has none, or if a transform such as vmap holds it."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    if not isinstance(found, Tensor) or compat.is_functorch_tensor(found):
        return None
    return found


def argument(node: Any, at: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, by position or by name."""
    return node.args[at] if at < len(node.args) else node.kwargs.get(name, default)
