"""Parameters that feed nothing: no gradient ever reaches them, and data-parallel training stops at them.

Such are the pooled branch of a model of which only the tokens are read, or a norm before a head that was cut off.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def unused(policy: nn.Module, loss: Tensor) -> dict[str, int]:
    """Values of the trainable parameters that `loss` does not depend on, by as few glob patterns as name just these."""
    reached = _leaves(loss)
    named = dict(policy.named_parameters())
    idle = {name for name, p in named.items() if p.requires_grad and id(p) not in reached}
    sizes: dict[str, int] = {}
    for name in (name for name in named if name in idle):
        pattern = _widest(name, named, idle)
        sizes[pattern] = sizes.get(pattern, 0) + named[name].numel()
    return sizes


def _leaves(loss: Tensor) -> set[int]:
    """Ids of the tensors at the ends of the graph of a loss: read from the graph, which meta tensors have as well."""
    found: set[int] = set()
    seen: set[object] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def _widest(name: str, names: Iterable[str], idle: set[str]) -> str:
    """The pattern of the outermost module around a parameter that is idle as a whole, or the name itself."""
    steps = name.split(".")
    for length in range(1, len(steps)):
        module = ".".join(steps[:length]) + "."
        if all(other in idle for other in names if other.startswith(module)):
            return f"{module}*"
    return name


__all__ = ["unused"]
