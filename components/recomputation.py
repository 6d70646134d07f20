"""Activations that are computed again in the backward pass, instead of being kept (Chen et al., 2016)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..schemas.errors import SpecError
from .key_values import CACHE, KeyValues

_FIELD = "gradient_checkpointing"
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


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
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.gradient_checkpointing = False
                layer.forward = partial(_again, layer)
        logging.getLogger("torch._higher_order_ops.wrap").addFilter(_heeded)
        return True
    try:
        model.set_grad_checkpointing(True)
    except AssertionError:  # as timm says that a model cannot
        return False
    return True


def _again(layer: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """A layer's forward pass, which the backward pass computes again.

    As transformers would do it, but inside of what is compiled, so that the second pass is part of the compiled backward
    pass; and keys and values are not dropped. What attention gives is kept there: its kernels could drop out, so to compute
    them again the compiler would bring back the state of random numbers, which no CUDA graph captures.
    """
    forward = partial(type(layer).forward, layer)
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    cache: KeyValues | None = options.pop(CACHE, None)

    def run(*inputs: Tensor) -> tuple[Any, Tensor | None]:
        if cache is None:
            return forward(*inputs, **options), None
        fresh = KeyValues(cache.past)
        return forward(*inputs, **{CACHE: fresh}, **options), fresh.held

    kept = partial(create_selective_checkpoint_contexts, _policy)
    compiling: dict[str, Any] = {"context_fn": kept} if torch.compiler.is_compiling() else {}
    out, held = checkpoint(run, *inputs, use_reentrant=False, **compiling)
    if cache is not None:
        cache.held = held
    return out


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def _heeded(record: logging.LogRecord) -> bool:
    """Whether torch says something else than that layers which are computed again must not work in place: none does."""
    return "context_fn is passed" not in record.getMessage()
