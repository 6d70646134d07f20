"""Layer of an expert that attends to the keys and values of a language model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import cached_attention, few_rows
from ..rotary import RotaryTable, apply_rotary
from .decoder import AdaRmsNorm, GatedMlp, RmsNorm, branch_of, grouped_attention, packed


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
        made = (self._split(self.key(keys)), self._split(self.value(values)))
        return torch.stack([each.transpose(1, 2) for each in made], dim=1)

    def forward(
        self,
        tokens: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        model: Tensor,
        places: RotaryTable,
        mask: Tensor | None,
        condition: Tensor | None,
        modulations: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return tokens (B, S, D), the branch to add to them, and its gate (B, D), as the next norm takes them.

        Args:
            tokens: (B, S, D).
            branch: The preceding layer's, if any.
            gate: The preceding layer's, if any.
            model: (B, 2, G, N, E), the result of `read`.
            places: Rotary table of the tokens.
            mask: True for visible keys.
            condition: Embedded time (B, C) or (B, S, C) for modulated norms.
            modulations: (B, 2, 3 * D), if both norms have made them of the condition before.
        """
        first, second = (None, None) if modulations is None else modulations.unbind(1)
        tokens, normal, gate = self.attention_norm(tokens, condition, branch, gate, first)
        query, own = self._project(normal)
        if cached_attention.serves(query):
            rows = query.shape[1] if mask is not None and mask.shape[2] == 1 else -1
            seen = None if mask is None else mask.expand(-1, -1, rows, -1)
            mixed = cached_attention.cached_attention(query, model[:, 0], model[:, 1], own, places, seen)
        else:
            mixed = self._attend(query, model, own, places, mask)
        tokens, normal, gate = self.mlp_norm(tokens, condition, branch_of(self.out, mixed), gate, second)
        return tokens, self.mlp(normal), gate

    def modulations(self, condition: Tensor) -> Tensor:
        """Return what modulated norms make of a condition (B, C), (B, 2, 3 * D)."""
        norms: Any = (self.attention_norm, self.mlp_norm)
        return torch.stack([norm.modulation(condition) for norm in norms], dim=1)

    def _attend(
        self,
        query: Tensor,
        model: Tensor,
        own: tuple[Tensor, Tensor] | None,
        places: RotaryTable,
        mask: Tensor | None,
    ) -> Tensor:
        """Return the gathered values (B, S, heads * E) of queries (B, S, heads, E)."""
        key, value = model.unbind(1)
        if own is not None:
            own_key, own_value = (each.transpose(1, 2) for each in own)
            key = torch.cat([key, apply_rotary(own_key, places)], dim=2)  # (B, G, N + S, E)
            value = torch.cat([value, own_value], dim=2)
        return grouped_attention(apply_rotary(query.transpose(1, 2), places), key, value, mask)

    def _project(self, normal: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return queries (B, S, heads, E) of tokens (B, S, D), and keys and values (B, S, G, E) if it is joint."""
        if not self.joint:
            return self._split(self.query(normal)), None
        layers = (self.query, self.key, self.value)
        if self.all is None:
            query, key, value = (self._split(layer(normal)) for layer in layers)
        else:
            sizes = [layer.out_features for layer in layers]
            multiply = few_rows.linear if few_rows.serves(normal) else F.linear
            query, key, value = (self._split(x) for x in multiply(normal, self.all).split(sizes, dim=-1))
        return query, (key, value)

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (-1, self.size))  # type: ignore[no-any-return]
