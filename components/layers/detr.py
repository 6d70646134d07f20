"""The transformer of DETR, as ACT uses it: positions are added to queries and keys of every layer, never to values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "gelu"]
Order = Literal["post", "pre"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class Sizes:
    """What the layers of a transformer have in common."""

    width: int
    heads: int
    feedforward: int
    dropout: float
    activation: Activation
    norm: Order
    """Whether a sublayer f is `norm(x + f(x))`, as in the original transformer, or `x + f(norm(x))`."""


class Attention(nn.Module):
    """Multi-head attention whose keys are not what its values are made of, with dropout of the weights.

    Starts like `nn.MultiheadAttention`, which draws query, key and value as one matrix (3 D, D).
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(4))
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(0.5))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries (B, N, D), keys and values (B, M, D), mask (B, M) True where valid -> (B, N, D)."""
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


class Layer(nn.Module):
    """What both kinds of layers have: residual sublayers, and the feed-forward one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.attention = Attention(sizes)
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.hidden = nn.Linear(sizes.width, sizes.feedforward)
        self.out = nn.Linear(sizes.feedforward, sizes.width)
        self.feedforward_norm = nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def sublayer(self, tokens: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """The tokens (B, N, D) with a branch added, normed before or after."""
        if self.sizes.norm == "pre":
            added: Tensor = tokens + self.dropout(branch(norm(tokens)))
            return added
        normed: Tensor = norm(tokens + self.dropout(branch(tokens)))
        return normed

    def attend(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Self-attention."""

        def branch(x: Tensor) -> Tensor:
            placed = x + positions
            mixed: Tensor = self.attention(placed, placed, x, mask)
            return mixed

        return self.sublayer(tokens, self.attention_norm, branch)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Linear, activation, linear."""

        def branch(x: Tensor) -> Tensor:
            out: Tensor = self.out(self.dropout(_ACTIVATIONS[self.sizes.activation](self.hidden(x))))
            return out

        return self.sublayer(tokens, self.feedforward_norm, branch)


class EncoderLayer(Layer):
    """Self-attention and feed-forward."""

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (B, N, D), positions (1 or B, N, D), mask (B, N) -> (B, N, D)."""
        return self.feed_forward(self.attend(tokens, positions, mask))


class DecoderLayer(Layer):
    """Self-attention of the queries, attention to the encoded tokens, and feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.cross = Attention(sizes)
        self.cross_norm = nn.LayerNorm(sizes.width)

    def forward(
        self, tokens: Tensor, places: Tensor, seen: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """tokens (B, H, D) at places (1, H, D) see encoded tokens (B, N, D) at positions -> (B, H, D)."""

        def branch(x: Tensor) -> Tensor:
            mixed: Tensor = self.cross(x + places, seen + positions, seen, mask)
            return mixed

        tokens = self.attend(tokens, places, None)
        return self.feed_forward(self.sublayer(tokens, self.cross_norm, branch))


class Encoder(nn.Module):
    """Encoder layers, and a norm after them where they are normed before."""

    def __init__(self, sizes: Sizes, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(sizes.width) if sizes.norm == "pre" else nn.Identity()

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (B, N, D), positions (1, N, D), mask (B, N) True where valid -> (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, mask)
        normed: Tensor = self.norm(tokens)
        return normed


class Decoder(nn.Module):
    """Decoder layers over queries that are nothing but their places, and a norm.

    In the first layer all values of the self-attention are the same, so that its weights have no effect, as in DETR.
    """

    def __init__(self, sizes: Sizes, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, places: Tensor, seen: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """places (1, H, D), encoded tokens (B, N, D) at positions (1, N, D), mask (B, N) -> (B, H, D)."""
        tokens = torch.zeros_like(places).expand(len(seen), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, places, seen, positions, mask)
        normed: Tensor = self.norm(tokens)
        return normed


def xavier(module: nn.Module) -> None:
    """Draw the matrices of encoder or decoder as DETR does; those of queries, keys and values are drawn so already."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and not name.endswith(("query.weight", "key.weight", "value.weight")):
            nn.init.xavier_uniform_(parameter)


def step_positions(count: int, width: int) -> Tensor:
    """Sines and cosines in turn of the steps 0, 1, ... (Vaswani et al., 2017), float32 (count, width)."""
    frequencies = 10_000.0 ** (-2.0 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()


def map_positions(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Positions of a feature map, row by row, float32 (height * width, size): DETR's sines and cosines.

    The first half tells the row, the second the column, each counted from 1 and scaled so that the last is 2 pi.
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
