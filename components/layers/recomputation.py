"""Recomputation of activations in the backward pass (gradient checkpointing, Chen et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ...schemas.errors import SpecError
from ..compat import (
    ATTENTION_OPERATORS,
    cache_argument,
    enable_gradient_checkpointing,
    ignore_recomputation_warning,
    is_batch_norm,
)
from ..kernels import attention
from .kv_cache import KeyValues

_FIELD = "gradient_checkpointing"
_ATTENTION = ATTENTION_OPERATORS | {attention.OPERATOR}


def recompute_all(parts: Iterable[nn.Module]) -> list[str] | None:
    """Enable recomputation in every part that supports it; return the reasons if none does, else None."""
    reasons, done = [], False
    for part in parts:
        try:
            recompute(part)
            done = True
        except SpecError as error:
            reasons.append(f"{type(part).__name__}: {error.message}")
    return None if done else reasons


def recompute(backbone: nn.Module) -> None:
    """Enable recomputation in the models of transformers and timm inside a backbone.

    They keep only activations between layers, and in compiled layers of transformers also the results of
    attention. A custom part takes part through a method `set_grad_checkpointing(enable)`, as in timm.

    Raises:
        SpecError: The backbone does not support it, or its batch norms would count every batch twice.
    """
    if any(is_batch_norm(m) and any(p.requires_grad for p in m.parameters()) for m in backbone.modules()):
        raise SpecError(
            "its batch norms would count every batch twice, because its layers are computed twice",
            field=_FIELD,
            label="does not support batch norms",
            help=f"set `norm: frozen` or `norm: group`, or leave `{_FIELD}` out",
        )
    switched = [_switch(model) for model in _recomputable(backbone)]
    if not any(switched):
        raise SpecError(
            "it does not support recomputation of its layers",
            field=_FIELD,
            label="not supported",
            help=f"leave `{_FIELD}` out",
        )


def _recomputable(module: nn.Module) -> Iterator[Any]:
    """Yield the outermost modules that support recomputation."""
    if callable(getattr(module, "set_grad_checkpointing", None)) or (
        isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing
    ):
        yield module
        return
    for child in module.children():
        yield from _recomputable(child)


def _switch(model: Any) -> bool:
    if isinstance(model, PreTrainedModel):
        enable_gradient_checkpointing(model)
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                take_over(layer)
        ignore_recomputation_warning()
        return True
    try:
        model.set_grad_checkpointing(True)
    except AssertionError:  # timm's way to reject a model
        return False
    return True


def take_over(layer: Any) -> None:
    """Replace transformers' recomputation of a layer by that of `Recomputed`."""
    layer.__class__ = _recomputed(type(layer))  # type: ignore[arg-type]
    layer.gradient_checkpointing = True


class Recomputed:
    """Layer of transformers whose backward pass recomputes the forward pass.

    Unlike in transformers, this happens inside the compiled layer, so the second pass is part of the compiled
    backward pass; and keys and values are preserved. The results of attention are kept: its kernels may apply
    dropout, so recomputing them would make the compiler restore the state of random numbers, which CUDA
    graphs cannot capture.
    """

    _enabled = True
    _cache: str
    """Name of the layer's argument for keys and values."""

    @property
    def gradient_checkpointing(self) -> bool:
        """False, so that transformers does not recompute; the setter switches this class."""
        return False

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, wanted: bool) -> None:
        self._enabled = wanted

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        """Run the layer's forward pass."""
        plain: Callable[..., Any] = super().forward  # type: ignore[misc]
        trains = self.training or any(isinstance(x, Tensor) and x.requires_grad for x in inputs)  # type: ignore[attr-defined]
        if not (self._enabled and trains and torch.is_grad_enabled()):
            return plain(*inputs, **options)
        given = options.pop(self._cache, None)
        cache = given if isinstance(given, KeyValues) else None  # transformers also drops its own here

        def run(*inputs: Tensor) -> tuple[Any, Tensor | None]:
            if cache is None:
                return plain(*inputs, **options), None
            fresh = KeyValues(cache.past)
            return plain(*inputs, **{self._cache: fresh}, **options), fresh.held

        kept = partial(create_selective_checkpoint_contexts, _policy)
        compiling: dict[str, Any] = {"context_fn": kept} if torch.compiler.is_compiling() else {}
        out, held = checkpoint(run, *inputs, use_reentrant=False, **compiling)
        if cache is not None:
            cache.held = held
        return out


@lru_cache
def _recomputed(kind: type[Any]) -> type[Any]:
    own = {"__module__": kind.__module__, "_cache": cache_argument()}
    return kind if issubclass(kind, Recomputed) else type(kind.__name__, (Recomputed, kind), own)


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
