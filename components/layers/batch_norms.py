"""Batch norms of image models, frozen or replaced."""

from __future__ import annotations

from typing import Any

from timm.layers.norm_act import BatchNormAct2d, GroupNormAct, freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_CHANNELS = 16
_freeze: Any = freeze_batch_norm_2d


def with_norm(model: nn.Module, norm: str) -> nn.Module:
    """The model with its batch norms left (`batch`), `frozen`, or replaced by `group` norms; raises ValueError."""
    if norm == "frozen":
        freeze_batch_norms(model)
    elif norm == "group":
        group_norms(model)
    return model


def freeze_batch_norms(model: nn.Module) -> None:
    """Fix statistics, weight and bias of every batch norm: they become buffers, under the same names.

    As torchvision's FrozenBatchNorm2d in detection models, and in ACT. Raises ValueError for a model without batch
    norms of images.
    """
    for parent, name, norm in _batch_norms(model):
        setattr(parent, name, _freeze(norm))


def group_norms(model: nn.Module) -> None:
    """Replace every batch norm by a group norm of 16 channels a group, as Diffusion Policy does.

    Raises ValueError for a model without batch norms of images, and for channels that do not divide into such groups.
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
    """Every batch norm, with the module that holds it and its name there."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm)
    ]
    if not found:
        raise ValueError("it has no batch norm")
    others = [type(norm).__name__ for _, _, norm in found if not isinstance(norm, nn.BatchNorm2d)]
    if others:
        raise ValueError(f"it has a {others[0]}, which is no norm of images")
    return found
