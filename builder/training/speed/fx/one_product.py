"""Queries, keys and values that come of the same tokens: one product, one tensor, and the gradient of its bias for nothing.

As three products they leave three gradients of the tokens, which are added up, and as parts of one that torch took apart,
three gradients, which are put together again. One tensor of all three needs neither.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .nodes import argument, example, follow, is_linear


def joined(attention: Any, inputs: list[Any]) -> tuple[Any, list[Any]] | None:
    """A node of queries, keys and values (B, N, 3, H, E) for an attention whose `inputs` (B, H, N, E) these are now.

    It is there already, or put before the attention. With it come the nodes that led to the inputs, which nothing needs
    once the attention is replaced. None where the three cannot be one.
    """
    return _taken_apart(attention, inputs) or _three_products(attention, inputs)


def give_bias(attention: Any) -> None:
    """Let an attention give the gradient of the bias of the linear layer that its keys and values are directly from."""
    query, key, value, seen, given, scale = attention.args
    packed = query if key is None else key
    if value is not None or given is not None or (linear := _split(packed)) is None:
        return
    bias = argument(linear, 2, "bias")
    alone = list(linear.users) == [packed] and list(packed.users) == [attention]
    if not alone or not _fits(bias, linear) or not follow([linear, packed], attention):
        return
    graph = attention.graph
    with graph.inserting_before(linear):
        detached = graph.call_method("detach", (bias,))
    linear.args = (argument(linear, 0, "input"), argument(linear, 1, "weight"), detached)
    linear.kwargs = {}
    with graph.inserting_before(attention):
        parts = graph.call_method("unflatten", (bias, 0, tuple(example(packed).shape[2:])))
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
    """Three linear layers of the same tokens, each followed by (B, N, H, E) and transpose: as transformers writes it.

    Each of the nine nodes is there for the next alone, and all stand directly before the attention.
    """
    if not all(_is_call(x, "transpose") and x.args[1:] == (1, 2) for x in inputs):
        return None
    views = [x.args[0] for x in inputs]
    linears = [_split(view) for view in views]
    nodes = [*linears, *views, *inputs]
    if None in linears or len(set(nodes)) < 9 or any(len(node.users) > 1 for node in nodes):
        return None
    tokens, weights, biases = (
        [argument(linear, at, name) for linear in linears]
        for at, name in enumerate(("input", "weight", "bias"))
    )
    biased = biases != [None] * 3
    fit = _of_one_dtype(weights) and (
        not biased or (_of_one_dtype(biases) and all(map(_fits, biases, linears)))
    )
    if not fit or len(set(tokens)) > 1 or not follow(nodes, attention):
        return None
    graph = attention.graph
    with graph.inserting_before(attention):
        weight, bias = _end_to_end(graph, weights), _end_to_end(graph, biases) if biased else None
        product = graph.call_function(F.linear, (tokens[0], weight, bias))
        product.meta["example_value"] = torch.cat([example(linear) for linear in linears], dim=-1)
        heads = example(views[0]).shape[2:]
        packed = graph.call_method("unflatten", (product, -1, (3, *heads)))
        packed.meta["example_value"] = example(product).unflatten(-1, (3, *heads))
    return packed, nodes


def _end_to_end(graph: fx.Graph, parts: list[Any]) -> fx.Node:
    node = graph.call_function(torch.cat, (parts,))
    node.meta["example_value"] = torch.cat([example(part) for part in parts])
    return node


def _of_one_dtype(parameters: list[Any]) -> bool:
    """Whether some tensors can become one without being converted."""
    examples = [example(parameter) for parameter in parameters]
    return all(x is not None for x in examples) and len({x.dtype for x in examples}) == 1


def _fits(bias: Any, linear: Any) -> bool:
    """Whether a bias has a number for each feature of a linear layer, and is not spread over them."""
    found = example(bias)
    return found is not None and found.shape == example(linear).shape[-1:]


def _split(node: Any) -> Any:
    """The linear layer whose features (B, N, F) a node splits, or None."""
    if not _is_call(node, "view", "reshape", "unflatten") or not node.args or not is_linear(node.args[0]):
        return None
    before, after = example(node.args[0]), example(node)
    if before is None or after is None or before.ndim != 3 or before.shape[:2] != after.shape[:2]:
        return None
    return node.args[0]


def _is_call(node: Any, *methods: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target in methods
