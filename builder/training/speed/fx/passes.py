"""A backend of torch.compile that replaces sequences of operators in layers by fused operators.

It reads the graph that torch.compile traces, before gradients: there a layer of transformers, of timm and of
a custom part look the same, and a linear layer that does more (an adapter) no longer looks like one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .....components.kernels import attention, gelu
from .....components.kernels.dispatch import uses_kernel
from .... import compat
from .nodes import argument, example, is_linear


def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile a graph with inductor, after `rewrite`."""
    rewrite(graph)
    return compat.compile_with_inductor(graph, inputs)


def rewrite(graph: fx.GraphModule) -> int:
    """Put fused operators into a traced graph and its subgraphs, and return their number."""
    count = 0
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            count += sum(_fuse_activation(node) or _fuse_attention(node) for node in list(module.graph.nodes))
            module.recompile()
    return count


def _fuse_activation(node: Any) -> bool:
    """Replace linear, GELU and any dropout, before a linear layer, by a product and one fused operator.

    The first three must follow each other directly, because anything between them could change a tensor or a
    mode; and nothing else may read the activation, because inductor would fuse that with it.
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
        options = {"dtype": torch.int64, "device": product.device}
        seed = graph.call_function(torch.randint, (2**62, (1,)), options) if dropped else None
        tanh = argument(node, 1, "approximate", "none") == "tanh"
        out = graph.call_function(gelu.OPERATOR, (values, bias, seed, tanh, dropped))
    _replace(last, out)
    for old in (node, linear) if last is after else (linear,):
        graph.erase_node(old)
    return True


def _fuse_attention(node: Any) -> bool:
    """Replace attention without mask and dropout, of shapes for which the kernel is faster."""
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
    # the number of samples and of keys may be symbolic, that of queries and their width may not
    known = all(isinstance(query.shape[at], int) for at in (1, -1))
    same_kind = (key.shape, key.dtype) == (value.shape, value.dtype)
    broadcast = any(query.shape[at] != key.shape[at] for at in (0, 2))
    if not known or not same_kind or broadcast or not attention.serves(query, key):
        return False
    graph = node.graph
    with graph.inserting_before(node):
        tokens_first = [graph.call_method("transpose", (x, 1, 2)) for x in inputs]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        pair = graph.call_function(attention.OPERATOR, (*tokens_first, None, scale))
        out = graph.call_method("transpose", (graph.call_function(operator.getitem, (pair, 0)), 1, 2))
    _replace(node, out)
    return True


def _replace(node: fx.Node, by: fx.Node) -> None:
    by.meta.update(node.meta)
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _is_rate(rate: Any) -> bool:
    """Return whether the dropout rate is a constant; where two layers differ in it, it may be an input of the graph."""
    return isinstance(rate, (int, float)) and 0.0 <= rate < 1.0


def _suits(product: Any, bias: Any) -> bool:
    """Return whether the kernel of the activation supports a layer's output and bias."""
    if product is None or bias is None or bias.shape != product.shape[-1:]:
        return False
    return product.dtype in (torch.bfloat16, torch.float16) and uses_kernel(product)
