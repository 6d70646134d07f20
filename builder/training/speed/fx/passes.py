"""Puts fused operators where compiled layers, their authors' or ours, spell out what these do.

It reads the graph that torch.compile traces, before gradients: there a layer of transformers, of timm and of a part of your
own look the same, and a linear layer that is more than that (float8, an adapter) no longer looks like one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._dynamo import lookup_backend

from .....components.kernels import attention, gelu
from .....components.kernels.dispatch import fused
from .nodes import argument, example, is_linear
from .one_product import give_bias, joined


def rewritten(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A backend of torch.compile: inductor, after `rewrite`."""
    rewrite(graph)
    return lookup_backend("inductor")(graph, inputs)


def rewrite(graph: fx.GraphModule) -> int:
    """Put fused operators into a traced graph and those inside it, and say how many."""
    found = 0
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            found += sum(_activation(node) or _attention(node) for node in list(module.graph.nodes))
            for node in module.graph.find_nodes(op="call_function", target=attention.OPERATOR):
                give_bias(node)
            module.recompile()
    return found


def _activation(node: Any) -> bool:
    """linear, gelu, perhaps dropout, linear -> linear without its bias; bias, gelu and dropout in one; linear.

    With nothing between the first three, which could change a tensor or a mode, and not where something else reads the
    activation, which inductor fuses with it.
    """
    linear, last, rate = node.prev, node, 0.0
    if node.target is not F.gelu or not is_linear(linear) or list(linear.users) != [node]:
        return False
    if (after := node.next).target is F.dropout and list(node.users) == [after]:
        rate = argument(after, 1, "p", 0.5) if argument(after, 2, "training", True) else 0.0
        last = after
    bias, product = argument(linear, 2, "bias"), example(linear)
    if not (_suits(product, example(bias)) and _is_rate(rate) and all(map(is_linear, last.users))):
        return False
    graph, dropped = node.graph, gelu.threshold(rate)
    with graph.inserting_before(last):
        inputs = argument(linear, 0, "input"), argument(linear, 1, "weight")
        values = graph.call_function(F.linear, inputs)
        drawn = {"dtype": torch.int64, "device": product.device}
        seed = graph.call_function(torch.randint, (2**62, (1,)), drawn) if dropped else None
        tanh = argument(node, 1, "approximate", "none") == "tanh"
        out = graph.call_function(gelu.OPERATOR, (values, bias, seed, tanh, dropped))
    _replace(last, out)
    for old in (node, linear) if last is after else (linear,):
        graph.erase_node(old)
    return True


def _attention(node: Any) -> bool:
    """Attention without mask and dropout, of shapes where ours is faster."""
    if node.target is not F.scaled_dot_product_attention:
        return False
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    *inputs, mask, dropout, causal, scale, grouped = (
        argument(node, at, name) for at, name in enumerate(names)
    )
    examples = [example(x) for x in inputs]
    if mask is not None or dropout or causal or grouped or any(x is None or x.ndim != 4 for x in examples):
        return False
    query, key, value = (x.transpose(1, 2) for x in examples)
    # batches and keys may come in several sizes
    known = all(isinstance(query.shape[at], int) for at in (1, -1))
    alike = (key.shape, key.dtype) == (value.shape, value.dtype)
    spread = any(query.shape[at] != key.shape[at] for at in (0, 2))
    if not known or not alike or spread or not attention.serves(query, key):
        return False
    graph = node.graph
    found = joined(node, inputs)
    with graph.inserting_before(node):
        if found is None:
            given = tuple(graph.call_method("transpose", (x, 1, 2)) for x in inputs)
        else:
            given = found[0], None, None
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        pair = graph.call_function(attention.OPERATOR, (*given, None, None, scale))
        out = graph.call_method("transpose", (graph.call_function(operator.getitem, (pair, 0)), 1, 2))
    _replace(node, out)
    for old in reversed([] if found is None else found[1]):
        if not old.users:
            graph.erase_node(old)
    return True


def _replace(node: fx.Node, by: fx.Node) -> None:
    by.meta.update(node.meta)
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _is_rate(rate: Any) -> bool:
    """Whether it is known what share is dropped; where two layers differ in it, it may be an input of the graph."""
    return isinstance(rate, (int, float)) and 0.0 <= rate < 1.0


def _suits(product: Any, bias: Any) -> bool:
    """Whether the kernel of the activation is made for what a layer gives, and for its bias."""
    if product is None or bias is None or bias.shape != product.shape[-1:]:
        return False
    return product.dtype in (torch.bfloat16, torch.float16) and fused(product)
