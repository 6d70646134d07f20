"""Private or changing API of torch and transformers, with the version at which each function was read."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch.nn.modules.batchnorm import _BatchNorm

ATTENTION_OPERATORS = frozenset(
    (
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    )
)
"""Operators behind `scaled_dot_product_attention` (torch 2.14)."""


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a batch norm of any number of dimensions (torch 2.14)."""
    return isinstance(module, _BatchNorm)


def version_of(tensor: Tensor) -> int:
    """Return the number of in-place changes to a tensor so far (torch 2.14)."""
    return tensor._version


def ignore_recomputation_warning() -> None:
    """Silence torch's warning about in-place changes in recomputed layers, which make none (torch 2.14)."""
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return "context_fn is passed" not in record.getMessage()


def enable_gradient_checkpointing(model: Any) -> None:
    """Enable gradient checkpointing in a model of transformers, whose method was renamed in 5.24."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@cache
def cache_argument() -> str:
    """Return the argument of transformers' layers for keys and values, renamed between 5.4 and 5.24."""
    from transformers import GemmaModel

    return "cache" if "cache" in inspect.signature(GemmaModel.forward).parameters else "past_key_values"


__all__ = [
    "ATTENTION_OPERATORS",
    "CustomOpDef",
    "cache_argument",
    "enable_gradient_checkpointing",
    "ignore_recomputation_warning",
    "is_batch_norm",
    "version_of",
]
