"""Queries, keys and values that come of the same tokens: one product, one tensor, and the gradient of its bias for nothing.

As three products they leave three gradients of the tokens, which are added up, and as parts of one that torch took apart,
three gradients, which are put together again. One tensor of all three needs neither.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .traced import argument, example, follow, is_linear


def joined(attention: Any, inputs: list[Any]) -> tuple[Any, list[Any]] | None:
    """Queries, keys and values (B, N, 3, H, E) of an attention whose inputs (B, H, N, E) are one tensor, or can be.

    With the nodes that the attention was given them by. Where it is not so, None.
    """
    return _taken_apart(attention, inputs) or _three_products(attention, inputs)


def give_bias(attention: Any) -> None:
    """Let an attention have the gradient of the bias that the tensor of its keys and values was given directly before."""
    query, key, value, seen, given, scale = attention.args
    packed = query if key is None else key
    if value is not None or given is not None or (split := _split(packed)) is None:
        return
    linear, sizes = split
    bias = argument(linear, 2, "bias")
    alone = list(linear.users) == [packed] and list(packed.users) == [attention]
    if bias is None or not alone or not follow([linear, packed], attention):
        return
    graph = attention.graph
    with graph.inserting_before(linear):
        detached = graph.call_method("detach", (bias,))
    linear.args = (argument(linear, 0, "input"), argument(linear, 1, "weight"), detached)
    linear.kwargs = {}
    with graph.inserting_before(attention):
        parts = graph.call_method("unflatten", (bias, 0, sizes))
    attention.args = (query, key, value, seen, parts, scale)


def _taken_apart(attention: Any, inputs: list[Any]) -> tuple[Any, list[Any]] | None:
    """linear, (B, N, 3, H, E), permute, unbind: as timm and many others write it."""
    unbind: Any = inputs[0].args[0] if inputs[0].args else None
    if not _is_call(unbind, "unbind") or [x.args for x in inputs] != [(unbind, at) for at in range(3)]:
        return None
    permute = unbind.args[0]
    nodes = [permute, unbind, *inputs]
    if argument(unbind, 1, "dim", 0) != 0 or not _is_call(permute, "permute") or not follow(nodes, attention):
        return None
    packed, *order = permute.args
    whole = example(packed)
    if order not in ([2, 0, 3, 1, 4], [(2, 0, 3, 1, 4)]) or whole is None or whole.shape[2] != 3:
        return None
    return packed, nodes


def _three_products(attention: Any, inputs: list[Any]) -> tuple[Any, list[Any]] | None:
    """Three linear layers of the same tokens, each followed by (B, N, H, E) and transpose: as transformers writes it."""
    if not all(_is_call(x, "transpose") and x.args[1:] == (1, 2) for x in inputs):
        return None
    views = [x.args[0] for x in inputs]
    splits = [split for view in views if (split := _split(view)) is not None]
    if len(splits) < 3:
        return None
    linears = [linear for linear, _ in splits]
    nodes = [*linears, *views, *inputs]
    if len(set(nodes)) < 9 or any(len(node.users) > 1 for node in nodes) or not follow(nodes, attention):
        return None
    tokens, weights, biases = (
        [argument(linear, at, name) for linear in linears]
        for at, name in enumerate(("input", "weight", "bias"))
    )
    alike = len(set(tokens)) == 1 and _alike(weights) and (biases == [None] * 3 or _alike(biases))
    if not alike:
        return None
    graph, sizes = attention.graph, (3, *example(views[0]).shape[2:])
    with graph.inserting_before(attention):
        weight, bias = (
            None if parts[0] is None else graph.call_function(torch.cat, (parts,))
            for parts in (weights, biases)
        )
        product = graph.call_function(F.linear, (tokens[0], weight, bias))
        packed = graph.call_method("unflatten", (product, -1, sizes))
    return packed, nodes


def _alike(parameters: list[Any]) -> bool:
    """Whether some parameters can become one tensor without being converted or spread."""
    examples = [example(parameter) for parameter in parameters]
    return None not in examples and len({(x.shape, x.dtype) for x in examples}) == 1


def _split(node: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """The linear layer whose features (B, N, F) a node splits, and into what sizes."""
    if not _is_call(node, "view", "reshape", "unflatten") or not is_linear(node.args[0]):
        return None
    linear, *sizes = node.args
    if node.target == "unflatten":
        return (linear, tuple(sizes[1])) if sizes[0] in (-1, 2) else None
    sizes = sizes[0] if len(sizes) == 1 else sizes
    before, after = example(linear), example(node)
    if before is None or after is None or before.shape[:-1] != after.shape[:2]:
        return None
    return linear, tuple(sizes[2:])


def _is_call(node: Any, *methods: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target in methods
