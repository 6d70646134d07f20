"""Small causal transformer that reads features and writes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....schemas.specs import Specs
from ...base import Feature
from ..basic import joined_mask, mlp
from ..rotary import apply_rotary, rotary_table


class TokenWriter(nn.Module):
    """Transformer that reads features as tokens and then writes tokens, as a `Decoder`.

    Features see each other; each written token sees all features, earlier written tokens and itself.
    """

    def __init__(self, features: Specs, width: int, depth: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self._keys = {key: key.replace(".", "_") for key in features}  # no dots in module names
        self.project = nn.ModuleDict(
            {
                self._keys[key]: nn.Sequential(nn.LayerNorm(spec.width), nn.Linear(spec.width, width))
                for key, spec in features.items()
            }
        )
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(WriterLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary)

    def read(self, features: Mapping[str, Feature]) -> Feature:
        """Return keys and values (B, L, 2, G, N, E) of the features."""
        dtype, parts = self.out.weight.dtype, []
        for key, name in self._keys.items():
            values = features[key].values
            tokens = self.project[name]((values if values.ndim == 3 else values[:, None]).to(dtype))
            parts.append((tokens, features[key].mask))
        tokens = torch.cat([tokens for tokens, _ in parts], dim=1)
        mask = joined_mask(*parts)
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        return replace(run_bidirectional(self.layers, tokens, mask)[1], decoder=self)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (B, M) to (B, M, D)."""
        embedded: Tensor = self.embedding(ids)
        return embedded

    def extend(self, past: Feature, embeddings: Tensor) -> tuple[Tensor, Feature]:
        """Return hidden states (B, M, D) of tokens (B, M, D) after the past, and the extended past."""
        assert past.mask is not None
        assert past.end is not None
        count = embeddings.shape[1]
        positions = past.end[:, None] + torch.arange(count, device=embeddings.device)
        earlier = past.mask[:, None, :].expand(-1, count, -1)
        causal = torch.ones(count, count, dtype=torch.bool, device=embeddings.device).tril()
        visible = torch.cat([earlier, causal.expand(embeddings.shape[0], -1, -1)], dim=2)[:, None]
        tokens, kept = embeddings, []
        for index, layer in enumerate(self.layers):
            tokens, key_values = layer(tokens, positions, past.values[:, index], visible)
            kept.append(key_values)
        mask = torch.cat([past.mask, past.mask.new_ones(tokens.shape[0], count)], dim=1)
        return tokens, replace(past, values=torch.stack(kept, 1), mask=mask, end=past.end + count)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores (B, M, vocabulary) of the tokens after hidden states (B, M, D)."""
        scores: Tensor = self.out(self.norm(hidden))
        return scores


def run_bidirectional(layers: nn.ModuleList, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Feature]:
    """Run layers over tokens (B, N, D), all visible but for mask (B, N); return them and keys and values."""
    count, visible = tokens.shape[1], None
    if mask is None:
        positions = torch.arange(count, device=tokens.device).expand(tokens.shape[0], -1)
        end = positions[:, -1] + 1
    else:
        positions, end = (mask.cumsum(1) - 1).clamp_min(0), mask.sum(1)
        visible = mask[:, None, None, :] | torch.eye(count, dtype=torch.bool, device=mask.device)
    kept = []
    for layer in layers:
        tokens, key_values = layer(tokens, positions, None, visible)
        kept.append(key_values)
    return tokens, Feature(torch.stack(kept, 1), mask, end)


class WriterLayer(nn.Module):
    """Self-attention with rotary positions, and feed-forward, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = mlp([width, 4 * width, width], "gelu")

    def forward(
        self, tokens: Tensor, positions: Tensor, past: Tensor | None, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (B, M, D) for tokens (B, M, D) at positions (B, M), and keys and values (B, 2, G, N + M, E).

        past holds keys and values (B, 2, G, N, E) of earlier tokens, and visible (B, 1, M, N + M) is True for
        tokens to attend to; None makes all visible.
        """
        split = self.query_key_value(self.norms[0](tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, G, M, E) each
        table = rotary_table(positions, query.shape[-1])
        query, key = apply_rotary(query, table), apply_rotary(key, table)
        if past is not None:
            key, value = torch.cat([past[:, 0], key], 2), torch.cat([past[:, 1], value], 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norms[1](tokens)), torch.stack([key, value], 1)
