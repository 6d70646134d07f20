"""Layer of an expert that attends to the keys and values of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..rotary import RotaryTable, apply_rotary
from .decoder import AdaRmsNorm, GatedMlp, RmsNorm, gated, grouped_attention, packed


def expert_norm(config: Any) -> nn.Module:
    """Build a norm of an expert, which time modulates with `time: adarms`."""
    adaptive = config.time == "adarms"
    return AdaRmsNorm(config.width, config.width) if adaptive else RmsNorm(config.width, config.family)


class ExpertLayer(nn.Module):
    """Transformer layer over the expert's tokens.

    A joint layer attends to the model's keys and values and to those of its tokens. Other layers compute keys
    and values from the model's, and attend to these alone.
    """

    def __init__(self, config: Any, groups: int, size: int, joint: bool) -> None:
        super().__init__()
        self.joint, self.size = joint, size
        source = config.width if joint else groups * size
        self.attention_norm = expert_norm(config)
        self.query = nn.Linear(config.width, config.heads * size, bias=False)
        self.key = nn.Linear(source, groups * size, bias=False)
        self.value = nn.Linear(source, groups * size, bias=False)
        self.out = nn.Linear(config.heads * size, config.width, bias=False)
        self.mlp_norm = expert_norm(config)
        self.mlp = GatedMlp(config.width, config.hidden, config.family)

        self.all: Tensor | None = None

    def pack(self) -> None:
        """Lay the weights of queries, keys and values out as one, for inference."""
        if self.joint:
            self.all = packed(self.query, self.key, self.value)

    def read(self, model: Tensor) -> Tensor:
        """Return the keys and values to attend to, from the model's (B, 2, G, N, E), in the same shape."""
        if self.joint:
            return model
        keys, values = model.transpose(2, 3).flatten(3).unbind(1)  # (B, N, G * E)
        return torch.stack([self._split(self.key(keys)), self._split(self.value(values))], dim=1)

    def forward(
        self,
        tokens: Tensor,
        model: Tensor,
        places: RotaryTable,
        mask: Tensor | None,
        condition: Tensor | None,
    ) -> Tensor:
        """Map tokens (B, S, D) to (B, S, D).

        model (B, 2, G, N, E) is the result of `read`, places hold the rotary table of the tokens, mask is
        True for visible keys, and condition (B, D) or (B, S, D) is the embedded time for modulated norms.
        """
        tokens, normal, gate = self.attention_norm(tokens, condition)
        key, value = model.unbind(1)
        if self.joint:
            query, own_key, own_value = (self._split(projected) for projected in self._project(normal))
            key = torch.cat([key, apply_rotary(own_key, places)], dim=2)  # (B, G, N + S, E)
            value = torch.cat([value, own_value], dim=2)
        else:
            query = self._split(self.query(normal))
        query = apply_rotary(query, places)
        branch = self.out(grouped_attention(query, key, value, mask))
        tokens, normal, gate = self.mlp_norm(tokens, condition, branch, gate)
        return tokens + gated(self.mlp(normal), gate)

    def _project(self, normal: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values of tokens (B, S, D), each (B, S, heads * E)."""
        if self.all is None:
            return self.query(normal), self.key(normal), self.value(normal)
        sizes = [layer.out_features for layer in (self.query, self.key, self.value)]
        projected: Sequence[Tensor] = F.linear(normal, self.all).split(sizes, dim=-1)
        return projected

    def _split(self, values: Tensor) -> Tensor:
        heads: Tensor = values.unflatten(-1, (-1, self.size))
        return heads.transpose(1, 2)  # (B, heads, S, E)
