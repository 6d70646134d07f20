"""Transformer layers of necks and networks, and their options."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ....schemas.errors import SpecError
from ....schemas.part import Count, Depth, Section
from ..basic import Activation, Attention, mlp
from ..rotary import RotaryTable


class LayerOptions(Section):
    """Options of a stack of transformer layers."""

    depth: Depth = 2
    """Number of layers."""
    heads: Count = 4
    """Number of attention heads, which share the width."""
    mlp_ratio: Annotated[float, Field(gt=0.0)] = 4.0
    """Hidden size of the feed-forward layers, relative to the width."""
    activation: Activation = "gelu"
    """Activation in the feed-forward layers."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout rate in the feed-forward layers and after every branch."""


class TransformerLayer(nn.Module):
    """Self-attention, optional attention to a context, and feed-forward, each after a separate norm.

    x += attention(norm(x))     x += cross(norm(x), context)     x += mlp(norm(x))     (Xiong et al., 2020)
    """

    def __init__(self, options: LayerOptions, width: int, attends: tuple[str, ...] = ("self",)) -> None:
        """Build the layer; `attends` names its attentions in order: `self`, `context`."""
        super().__init__()
        hidden = round(width * options.mlp_ratio)
        self.branches = nn.ModuleDict({name: Attention(width, options.heads) for name in attends})
        self.branches["mlp"] = mlp([width, hidden, width], options.activation, options.dropout)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in self.branches})
        self.dropout = options.dropout

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        rotary: RotaryTable | None = None,
    ) -> Tensor:
        """Map tokens (B, N, D), with context (B, M, D), to (B, N, D); masks, `rotary` as in Attention."""
        for name, branch in self.branches.items():
            normal = self.norms[name](tokens)
            if name == "self":
                change = branch(normal, normal, mask, rotary)
            else:
                change = branch(normal, context, context_mask) if name == "context" else branch(normal)
            tokens = tokens + F.dropout(change, self.dropout, self.training)
        return tokens


def check_heads(width: int, heads: int, given: bool = True, parts: int = 1) -> None:
    """Raise SpecError if heads cannot share a width, which an option `width` sets if `given`.

    Each head's share must in turn be a multiple of `parts`, such as the pairs of rotary positions.
    """
    multiple = heads * parts
    if width % multiple:
        raise SpecError(
            f"a width of {width} cannot be shared by {heads} heads",
            field="width" if given else "heads",
            label=f"not a multiple of {multiple}" if given else f"does not divide {width}",
            help=f"choose a `width` that is a multiple of {multiple}"
            if parts > 1
            else "choose a `width` that is a multiple of `heads`",
        )
