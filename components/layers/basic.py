"""Small layers shared by several parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import attention
from .rotary import RotaryTable, apply_rotary

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "mish", "tanh"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}


def mlp(sizes: Sequence[int], activation: Activation, dropout: float = 0.0) -> nn.Sequential:
    """Build linear layers through `sizes`, with activation (and dropout) in between, none at the end."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes):
        if layers:
            layers.append(_ACTIVATIONS[activation]())
            if dropout > 0.0:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width, following))
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Multi-head attention of `queries` over `context`, which may have another width."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        queries: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        rotary: RotaryTable | None = None,
        both: Tensor | None = None,
    ) -> Tensor:
        """Attend from queries (B, N, D) to context (B, M, C), and return (B, N, D).

        mask is (B, M), True for valid context, or (B, N, M), True for visible context; a query that sees
        nothing gathers zeros. `rotary` rotates queries and keys. `both` (B, M, 2 * D) are keys and values of
        the context, if `key_value` has computed them before.
        """
        query = self.query(queries).unflatten(-1, (self.heads, -1))
        both = (self.key_value(context) if both is None else both).unflatten(-1, (2, self.heads, -1))
        plain = rotary is None and (mask is None or mask.shape == both.shape[:2])
        if plain and attention.serves(query, both):
            gathered: Tensor = self.out(attention.attention(query, both, seen=mask).flatten(2))
            return gathered
        query, key, value = (x.transpose(1, 2) for x in (query, *both.unbind(2)))
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        allowed = None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed
        )  # (B, heads, N, D / heads)
        if allowed is not None:  # some kernels mix hidden values if nothing is allowed
            mixed = mixed.masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def sinusoids(
    times: Tensor,
    width: int,
    scale: float = 1000.0,
    longest: float = 10_000.0,
    ends: Literal["first", "both"] = "first",
) -> Tensor:
    """Embed times (B,) in [0, 1] by sines and cosines of `scale * t`, float32 (B, width).

    Periods reach up to `longest` * 2 pi, inclusive if `ends` is `both`, as in Diffusion Policy. This is the
    embedding of diffusion models (Ho et al., 2020). `width` must be even.
    """
    half = width // 2
    steps = torch.arange(half, device=times.device, dtype=torch.float32)
    gaps = half if ends == "first" else half - 1
    angles = scale * times.float()[:, None] * torch.exp(-math.log(longest) / gaps * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def waves(times: Tensor, width: int, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """Embed times (B,) in [0, 1] by sines and cosines of geometrically spaced periods, float32 (B, width).

    Periods include both `shortest` and `longest`. This is the embedding of pi0 (Black et al., 2024). `width`
    must be even.
    """
    share = torch.linspace(0.0, 1.0, width // 2, device=times.device, dtype=torch.float64)
    angles = 2.0 * math.pi * times.double()[:, None] / (shortest * (longest / shortest) ** share)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


class CategoryLinear(nn.Module):
    """Linear layer with separate weights for each category, such as a robot: y = x W[id] + b[id].

    Each category starts like `nn.Linear`. A sample reaches the weights of its own category only.
    """

    def __init__(self, categories: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(categories, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(categories, out_features).uniform_(-bound, bound))

    def forward(self, values: Tensor, ids: Tensor) -> Tensor:
        """Map values (B, ..., in) of categories ids (B,) to (B, ..., out)."""
        rows = values.reshape(values.shape[0], -1, values.shape[-1])  # (B, N, in)
        mixed = torch.baddbmm(self.bias[ids, None], rows, self.weight[ids])  # (B, N, out)
        return mixed.reshape(*values.shape[:-1], -1)


class CategoryMlp(nn.Module):
    """`mlp` with separate first and last layers for each category, and shared layers in between."""

    def __init__(
        self, categories: int, sizes: Sequence[int], activation: Activation, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = mlp(sizes, activation, dropout)
        for position in {0, len(self.layers) - 1}:
            layer = self.layers[position]
            assert isinstance(layer, nn.Linear)
            self.layers[position] = CategoryLinear(categories, layer.in_features, layer.out_features)

    def forward(self, values: Tensor, ids: Tensor) -> Tensor:
        """Map values (B, ..., in) of categories ids (B,) to (B, ..., out)."""
        for layer in self.layers:
            values = layer(values, ids) if isinstance(layer, CategoryLinear) else layer(values)
        return values


L = TypeVar("L", bound=nn.Linear | CategoryLinear)


def zero(layer: L) -> L:
    """Set weight and bias of a layer to zero, so that an added branch starts as zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def joined_mask(*parts: tuple[Tensor, Tensor | None]) -> Tensor | None:
    """Concatenate masks (B, N) of sequences of tokens; None stands for all valid."""
    if all(mask is None for _, mask in parts):
        return None
    masks = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if m is None else m for tokens, m in parts]
    return torch.cat(masks, dim=1)
