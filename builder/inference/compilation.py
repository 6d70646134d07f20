"""Compilation of the layers that parts repeat, one by one, so that all of a kind share their code."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn

from ...components.base import Learner
from ..convolutions import channels_last, patch_products
from ..policy import BasePolicyModel


def compile_layers(policy: BasePolicyModel) -> list[nn.Module]:
    """Let the repeated layers of a policy compile themselves for the shapes that they meet; return them."""
    layers = list(dict.fromkeys(_layers(policy)))
    for layer in layers:
        layer.compile(dynamic=False)
    return layers


def pack(policy: BasePolicyModel) -> None:
    """Let parts and layers prepare weights that are the policy's own, such as by laying several out as one.

    Convolutions are laid out as in training, so that patches of images become rows of tokens without a copy.
    """
    forever = ExitStack()
    channels_last(policy, forever)
    patch_products(policy, forever)
    for module in policy.modules():
        if callable(own := getattr(module, "pack", None)):
            own()


def _layers(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, Learner):
        return module.repeated_blocks()
    return [layer for child in module.children() for layer in _layers(child)]


__all__ = ["compile_layers", "pack"]
