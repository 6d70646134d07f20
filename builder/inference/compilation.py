"""Compilation of the layers that parts repeat, one by one, so that all of a kind share their code."""

from __future__ import annotations

from torch import nn

from ...components.base import Learner
from ..policy import BasePolicyModel


def compile_layers(policy: BasePolicyModel) -> list[nn.Module]:
    """Let the repeated layers of a policy compile themselves for the shapes that they meet; return them."""
    layers = list(dict.fromkeys(_layers(policy)))
    for layer in layers:
        layer.compile(dynamic=False)
    return layers


def pack(policy: BasePolicyModel) -> None:
    """Let layers that can lay several weights out as one do so, on weights that are the policy's own."""
    for module in policy.modules():
        if callable(own := getattr(module, "pack", None)):
            own()


def _layers(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, Learner):
        return module.repeated_blocks()
    return [layer for child in module.children() for layer in _layers(child)]


__all__ = ["compile_layers", "pack"]
