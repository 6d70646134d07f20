"""Attention of transformers' layers in inference: by a kernel where torch's are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..kernels.cached_attention import cached_attention, serves

_NAME = "policysmith"
_WIDEST = 128
"""Widest heads for which torch's kernels are fast."""


def attend_by_kernels(layers: Iterable[nn.Module]) -> None:
    """Let layers whose attention is torch's attend by a kernel to heads for which it is faster."""
    for layer in layers:
        for module in layer.modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "_attn_implementation", None) == "sdpa":
                config._attn_implementation = _NAME


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Return (B, N, h, E) of queries (B, h, N, E) over keys and values (B, G, M, E), under mask (B, 1, N, M)."""
    if mask is not None and query.shape[-1] > _WIDEST and serves(query):
        mixed = cached_attention(query.transpose(1, 2), key, value, mask=mask, scale=options.get("scaling"))
        return mixed.unflatten(-1, (query.shape[1], -1)), None
    found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(module, query, key, value, mask, **options)
    return found


AttentionInterface.register(_NAME, _attend)

__all__ = ["attend_by_kernels"]
