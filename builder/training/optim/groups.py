"""Parameter groups: which weights decay, and which learning rate each takes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ....schemas.recipe import OptimizerSection

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _BatchNorm)
_VECTORS = ("pos_embed", "position", "cls_token", "reg_token", "mask_token")


def decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies.

    Norms, biases, embeddings, positions, class tokens, and single vectors do not decay.
    """
    if isinstance(module, (*_NORMS, nn.Embedding)) or any(mark in name for mark in _VECTORS):
        return False
    if name.rpartition(".")[2] == "bias":  # a matrix where each robot has its own
        return False
    return parameter.ndim > 1 and parameter.numel() > parameter.shape[-1]


def parameter_groups(model: nn.Module, section: OptimizerSection) -> list[dict[str, object]]:
    """Group the trainable parameters by the first pattern that matches and by decay; each group has its `lr_scale`."""
    groups: dict[tuple[str, bool], dict[str, object]] = {}
    for module, name, parameter in _parameters(model):
        if not parameter.requires_grad:
            continue
        settings = next((g for g in section.groups if fnmatch.fnmatchcase(name, g.match)), None)
        pattern = settings.match if settings is not None else ""
        decay = decays(module, name, parameter)
        weight_decay = section.weight_decay
        if settings is not None and settings.weight_decay is not None:
            weight_decay = settings.weight_decay
        group = groups.setdefault(
            (pattern, decay),
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if decay else 0.0,
                "lr_scale": settings.lr_scale if settings is not None else 1.0,
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
        group["names"].append(name)  # type: ignore[attr-defined]
    return list(groups.values())


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield each parameter once, with its module and its full name."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield module, f"{prefix}.{leaf}" if prefix else leaf, parameter
