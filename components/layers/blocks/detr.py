"""Transformer of DETR, as in ACT: every layer adds positions to queries and keys, never to values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DetrActivation = Literal["relu", "gelu"]
NormOrder = Literal["post", "pre"]
_DETR_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class DetrSizes:
    """Sizes and options shared by the layers of a transformer."""

    width: int
    heads: int
    feedforward: int
    dropout: float
    activation: DetrActivation
    norm: NormOrder
    """Order of a sublayer f: `norm(x + f(x))` for post, as in the original transformer, `x + f(norm(x))` for pre."""


class DetrAttention(nn.Module):
    """Multi-head attention with separate inputs for keys and values, and dropout of the weights.

    Starts like `nn.MultiheadAttention`, which draws query, key and value as one matrix (3 D, D).
    """

    def __init__(self, sizes: DetrSizes) -> None:
        super().__init__()
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(4))
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(0.5))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from queries (B, N, D) to keys and values (B, M, D), with mask (B, M)."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or M, D / heads)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class DetrLayer(nn.Module):
    """Residual sublayers and feed-forward branch of encoder and decoder layers."""

    def __init__(self, sizes: DetrSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.attention = DetrAttention(sizes)
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.hidden = nn.Linear(sizes.width, sizes.feedforward)
        self.out = nn.Linear(sizes.feedforward, sizes.width)
        self.feedforward_norm = nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def sublayer(self, tokens: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a branch to tokens (B, N, D), with a norm before or after."""
        if self.sizes.norm == "pre":
            added: Tensor = tokens + self.dropout(branch(norm(tokens)))
            return added
        normed: Tensor = norm(tokens + self.dropout(branch(tokens)))
        return normed

    def attend(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Apply self-attention."""

        def branch(x: Tensor) -> Tensor:
            placed = x + positions
            mixed: Tensor = self.attention(placed, placed, x, mask)
            return mixed

        return self.sublayer(tokens, self.attention_norm, branch)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Apply linear, activation, linear."""

        def branch(x: Tensor) -> Tensor:
            out: Tensor = self.out(self.dropout(_DETR_ACTIVATIONS[self.sizes.activation](self.hidden(x))))
            return out

        return self.sublayer(tokens, self.feedforward_norm, branch)


class DetrEncoderLayer(DetrLayer):
    """Encoder layer: self-attention and feed-forward."""

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) at positions (1 or B, N, D), with mask (B, N), to (B, N, D)."""
        return self.feed_forward(self.attend(tokens, positions, mask))


class DetrDecoderLayer(DetrLayer):
    """Decoder layer: self-attention of the queries, cross-attention to encoded tokens, and feed-forward."""

    def __init__(self, sizes: DetrSizes) -> None:
        super().__init__(sizes)
        self.cross = DetrAttention(sizes)
        self.cross_norm = nn.LayerNorm(sizes.width)

    def forward(
        self, tokens: Tensor, places: Tensor, seen: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Map tokens (B, H, D) at places (1, H, D) to (B, H, D), by attention to encoded tokens (B, N, D)."""

        def branch(x: Tensor) -> Tensor:
            mixed: Tensor = self.cross(x + places, seen + positions, seen, mask)
            return mixed

        tokens = self.attend(tokens, places, None)
        return self.feed_forward(self.sublayer(tokens, self.cross_norm, branch))


class DetrEncoder(nn.Module):
    """Stack of encoder layers, with a final norm for pre-norm layers."""

    def __init__(self, sizes: DetrSizes, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DetrEncoderLayer(sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(sizes.width) if sizes.norm == "pre" else nn.Identity()

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) at positions (1, N, D), with mask (B, N), to (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, mask)
        normed: Tensor = self.norm(tokens)
        return normed


class DetrDecoder(nn.Module):
    """Stack of decoder layers over queries that consist of their positions alone, with a final norm.

    In the first layer all values of the self-attention are equal, so its weights have no effect, as in DETR.
    """

    def __init__(self, sizes: DetrSizes, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DetrDecoderLayer(sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, places: Tensor, seen: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Decode places (1, H, D) to (B, H, D), from tokens (B, N, D) at (1, N, D), with mask (B, N)."""
        tokens = torch.zeros_like(places).expand(seen.shape[0], -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, places, seen, positions, mask)
        normed: Tensor = self.norm(tokens)
        return normed


def xavier(module: nn.Module) -> None:
    """Initialize matrices of encoder or decoder as in DETR; queries, keys and values already are."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and not name.endswith(("query.weight", "key.weight", "value.weight")):
            nn.init.xavier_uniform_(parameter)


def step_positions(count: int, width: int) -> Tensor:
    """Return interleaved sines and cosines of steps (Vaswani et al., 2017), float32 (count, width)."""
    frequencies = 10_000.0 ** (-2.0 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()


def map_positions(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Return DETR's sine and cosine positions of a feature map, row by row, float32 (height * width, size).

    The first half encodes the row, the second the column, both counted from 1 and scaled to end at 2 pi.
    """
    half = size // 2
    frequencies = 10_000.0 ** (-2.0 * (torch.arange(half, device=device, dtype=torch.float32) // 2) / half)
    axes = []
    for count in (height, width):
        steps = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        angles = steps[:, None] / (count + 1e-6) * (2.0 * math.pi) * frequencies  # (count, half)
        axes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1))
    rows, columns = axes[0][:, None].expand(-1, width, -1), axes[1].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
