"""Activations that are computed again in the backward pass, instead of being kept (Chen et al., 2016)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ...schemas.errors import SpecError
from ..kernels import attention
from .kv_cache import CACHE, KeyValues

_FIELD = "gradient_checkpointing"
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    attention.OPERATOR,
}


def recompute_all(parts: Iterable[nn.Module]) -> list[str] | None:
    """Let every part that can compute its layers again do so. Return why none can, or None where one does."""
    reasons, done = [], False
    for part in parts:
        try:
            recompute(part)
            done = True
        except SpecError as error:
            reasons.append(f"{type(part).__name__}: {error.message}")
    return None if done else reasons


def recompute(backbone: nn.Module) -> None:
    """Let the models of transformers and timm in a backbone keep what goes from layer to layer, and compiled layers of
    transformers what attention gives.

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
                take_over(layer)
        logging.getLogger("torch._higher_order_ops.wrap").addFilter(_heeded)
        return True
    try:
        model.set_grad_checkpointing(True)
    except AssertionError:  # as timm says that a model cannot
        return False
    return True


def take_over(layer: Any) -> None:
    """Let a layer that transformers would compute again do so by itself, as `Recomputed`."""
    layer.__class__ = _recomputed(type(layer))  # type: ignore[arg-type]
    layer.gradient_checkpointing = True


class Recomputed:
    """A layer of transformers whose backward pass computes the forward pass again.

    As transformers would do it, but inside of what is compiled, so that the second pass is part of the compiled backward
    pass; and keys and values are not dropped. What attention gives is kept there: its kernels could drop out, so to compute
    them again the compiler would bring back the state of random numbers, which no CUDA graph captures.
    """

    _again = True

    @property
    def gradient_checkpointing(self) -> bool:
        """Nothing for transformers to do, which switches this layer on and off here."""
        return False

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, wanted: bool) -> None:
        self._again = wanted

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        """As the layer itself."""
        plain: Callable[..., Any] = super().forward  # type: ignore[misc]
        trains = self.training or any(isinstance(x, Tensor) and x.requires_grad for x in inputs)  # type: ignore[attr-defined]
        if not (self._again and trains and torch.is_grad_enabled()):
            return plain(*inputs, **options)
        given = options.pop(CACHE, None)
        cache = given if isinstance(given, KeyValues) else None  # transformers drops its own here, too

        def run(*inputs: Tensor) -> tuple[Any, Tensor | None]:
            if cache is None:
                return plain(*inputs, **options), None
            fresh = KeyValues(cache.past)
            return plain(*inputs, **{CACHE: fresh}, **options), fresh.held

        kept = partial(create_selective_checkpoint_contexts, _policy)
        compiling: dict[str, Any] = {"context_fn": kept} if torch.compiler.is_compiling() else {}
        out, held = checkpoint(run, *inputs, use_reentrant=False, **compiling)
        if cache is not None:
            cache.held = held
        return out


@lru_cache
def _recomputed(kind: type[Any]) -> type[Any]:
    own = {"__module__": kind.__module__}
    return kind if issubclass(kind, Recomputed) else type(kind.__name__, (Recomputed, kind), own)


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def _heeded(record: logging.LogRecord) -> bool:
    """Whether torch says something else than that layers which are computed again must not work in place: none does."""
    return "context_fn is passed" not in record.getMessage()
