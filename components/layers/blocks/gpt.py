"""Small causal transformer (GPT-2, Radford et al., 2019) over token vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gpt(nn.Module):
    """Causal transformer over tokens (B, N, D), with learned positions."""

    def __init__(self, length: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(GptBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("mix.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2.0 * depth))
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D), with mask (B, N), to (B, N, D)."""
        tokens = self.dropout(self.embed(tokens) + self.positions)
        count = tokens.shape[1]
        allowed = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()[None, None]
        if mask is not None:  # every token sees itself, so that attention is never empty
            own = torch.eye(count, dtype=torch.bool, device=tokens.device)
            allowed = (allowed & mask[:, None, None]) | own
        for block in self.blocks:
            tokens = block(tokens, allowed)
        out: Tensor = self.out(self.norm(tokens))
        return out


class GptBlock(nn.Module):
    """Self-attention and feed-forward, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, allowed: Tensor) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D); allowed (1 or B, 1, N, N) is True for visible tokens."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
            for part in self.query_key_value(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        rate = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=rate)
        tokens = tokens + self.dropout(self.mix(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = tokens + self.dropout(self.feedforward(self.feedforward_norm(tokens)))
        return out
