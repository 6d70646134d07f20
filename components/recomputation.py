"""Activations that are computed again in the backward pass, instead of being kept (Chen et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..schemas.errors import SpecError

_FIELD = "gradient_checkpointing"


def recompute(backbone: nn.Module) -> None:
    """Let the models of transformers and timm in a backbone keep only what goes from layer to layer.

    A part of your own takes part by a method `set_grad_checkpointing(enable)`, as models of timm have it. Raises
    SpecError for a backbone that cannot do it, or whose batch norms would count every batch twice.
    """
    if any(
        isinstance(m, _BatchNorm) and any(p.requires_grad for p in m.parameters()) for m in backbone.modules()
    ):
        raise SpecError(
            "its batch norms would count every batch twice, because its layers are computed twice",
            field=_FIELD,
            label="does not go with batch norms",
            help=f"set `norm: frozen` or `norm: group`, or leave `{_FIELD}` out",
        )
    switched = [_switch(model) for model in _models(backbone)]
    if not any(switched):
        raise SpecError(
            "it cannot compute its layers again",
            field=_FIELD,
            label="not possible",
            help=f"leave `{_FIELD}` out",
        )


def _models(module: nn.Module) -> Iterator[Any]:
    """The outermost modules that know how."""
    if callable(getattr(module, "set_grad_checkpointing", None)) or (
        isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing
    ):
        yield module
        return
    for child in module.children():
        yield from _models(child)


def _switch(model: Any) -> bool:
    if isinstance(model, PreTrainedModel):
        name = "activation_checkpointing_enable"  # since transformers 5.24
        getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": False})
        return True
    try:
        model.set_grad_checkpointing(True)
    except AssertionError:  # as timm says that a model cannot
        return False
    return True
