"""Frozen and replaced batch norms of image models."""

from __future__ import annotations

from typing import Any

from timm.layers.norm_act import BatchNormAct2d, GroupNormAct, freeze_batch_norm_2d
from torch import nn

from ..compat import is_batch_norm

_CHANNELS = 16
_freeze_batch_norm: Any = freeze_batch_norm_2d


def with_norm(model: nn.Module, norm: str) -> nn.Module:
    """Keep the batch norms of a model (`batch`), freeze them, or replace them by `group` norms.

    Raises:
        ValueError: The model has no batch norms of images, or their channels do not divide into groups.
    """
    if norm == "frozen":
        freeze_batch_norms(model)
    elif norm == "group":
        group_norms(model)
    return model


def freeze_batch_norms(model: nn.Module) -> None:
    """Fix statistics, weight and bias of every batch norm as buffers of the same names.

    This equals torchvision's FrozenBatchNorm2d, as in ACT. Raise ValueError for a model without batch norms
    of images.
    """
    for parent, name, norm in _batch_norms(model):
        setattr(parent, name, _freeze_batch_norm(norm))


def group_norms(model: nn.Module) -> None:
    """Replace every batch norm by a group norm with 16 channels per group, as in Diffusion Policy.

    Raises:
        ValueError: The model has no batch norms of images, or their channels do not divide into groups.
    """
    for parent, name, norm in _batch_norms(model):
        channels = norm.num_features
        groups = channels // _CHANNELS
        if not groups or channels % groups:
            raise ValueError(f"{channels} channels do not divide into groups of {_CHANNELS}")
        replaced: nn.Module = nn.GroupNorm(groups, channels)
        if isinstance(norm, BatchNormAct2d):
            replaced = GroupNormAct(channels, groups, apply_act=False)
            replaced.act, replaced.drop = norm.act, norm.drop
        setattr(parent, name, replaced)


def _batch_norms(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return every batch norm, with its parent module and its name there."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if is_batch_norm(child)
    ]
    if not found:
        raise ValueError("it has no batch norm")
    others = [type(norm).__name__ for _, _, norm in found if not isinstance(norm, nn.BatchNorm2d)]
    if others:
        raise ValueError(f"it has a {others[0]}, which is not a norm of images")
    return found
