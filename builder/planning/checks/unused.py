"""Parameters without a gradient, at which data-parallel training fails.

Examples are the pooled branch of a model whose tokens alone are read, or a norm before a head that was cut
off.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def unused(policy: nn.Module, loss: Tensor) -> dict[str, int]:
    """Return the number of trainable values without effect on `loss`, by as few patterns as possible."""
    reached = _leaves(loss)
    named = dict(policy.named_parameters())
    idle = {name for name, p in named.items() if p.requires_grad and id(p) not in reached}
    sizes: dict[str, int] = {}
    for name in (name for name in named if name in idle):
        pattern = _widest_pattern(name, named, idle)
        sizes[pattern] = sizes.get(pattern, 0) + named[name].numel()
    return sizes


def _leaves(loss: Tensor) -> set[int]:
    """Return the ids of the leaf tensors in the graph of a loss, which meta tensors have too."""
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


def _widest_pattern(name: str, names: Iterable[str], idle: set[str]) -> str:
    """Return the pattern of the outermost idle module around a parameter, or the name itself."""
    steps = name.split(".")
    for length in range(1, len(steps)):
        module = ".".join(steps[:length]) + "."
        if all(other in idle for other in names if other.startswith(module)):
            return f"{module}*"
    return name


__all__ = ["unused"]
