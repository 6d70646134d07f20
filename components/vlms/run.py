"""Execution of the layers of a language model over a sequence, and its continuation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base import Feature
from ..compat import cache_argument
from ..layers.kv_cache import KeyValues
from ..layers.recomputation import take_over
from ..layers.rotary import RotaryEmbedding
from .base import VlmFamily


@dataclass(frozen=True)
class LayerOutputs:
    """Outputs of the layers for a sequence."""

    layers: Sequence[Tensor]
    """Hidden states (B, N, D) after each layer."""
    key_values: Sequence[Tensor]
    """Keys and values (B, 2, G, N, E) of each layer, if the family has any."""


def run_layers(
    layers: Iterable[nn.Module],
    hidden: Tensor,
    visible: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    past: Tensor | None = None,
    deep: Sequence[Tensor] = (),
) -> LayerOutputs:
    """Run hidden states (B, N, D) through `layers`, under mask visible (B, 1, N, N).

    past holds keys and values (B, L, 2, G, M, E) of earlier tokens; visible is then (B, 1, N, M + N). deep
    holds features (B, N, D) to add after each of the first layers.
    """
    states, pairs = [], []
    for index, layer in enumerate(layers):
        if getattr(layer, "gradient_checkpointing", False):
            take_over(layer)  # transformers would drop keys and values
        cache = KeyValues(None if past is None else past[:, index])
        options = {} if rotary is None else {"position_embeddings": rotary, cache_argument(): cache}
        hidden = layer(hidden, attention_mask=visible, **options)
        if index < len(deep):
            hidden = hidden + deep[index]
        states.append(hidden)
        if cache.held is not None:
            pairs.append(cache.held)
    return LayerOutputs(states, pairs)


class Continuation:
    """`Decoder` that continues a model's key_values with the same weights."""

    def __init__(
        self,
        family: VlmFamily,
        model: nn.Module,
        head: Callable[[Tensor], Tensor],
        rotary: RotaryEmbedding,
        scale: float,
    ) -> None:
        """Build the decoder; `head` scores the next token, and `scale` multiplies embeddings."""
        self._family, self._model, self._head = family, model, head
        self._rotary, self._scale = rotary, scale

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (B, M) to (B, M, D)."""
        embedded: Tensor = self._family.embedding(self._model)(ids)
        return embedded * self._scale

    def extend(self, past: Feature, embeddings: Tensor) -> tuple[Tensor, Feature]:
        """Return hidden states (B, M, D) of embeddings after `past`, and the extended past."""
        assert past.end is not None
        assert past.mask is not None
        batch, count = embeddings.shape[:2]
        steps = torch.arange(count, device=embeddings.device)
        positions = (past.end[:, None] + steps).expand(self._family.axes, batch, count)
        earlier = past.mask[:, None, :].expand(batch, count, -1)
        among = (steps[None, :] <= steps[:, None]).expand(batch, count, count)
        visible = torch.cat([earlier, among], dim=2)[:, None]  # (B, 1, M, N + M)
        outputs = run_layers(
            self._family.layers(self._model),
            self._family.prepare(self._model, embeddings, positions),
            visible,
            self._rotary(positions, embeddings.dtype),
            past.values,
        )
        mask = torch.cat([past.mask, past.mask.new_ones(batch, count)], dim=1)
        extended = Feature(torch.stack(list(outputs.key_values), dim=1), mask, past.end + count, self)
        return self._family.finish(self._model, outputs.layers[-1]), extended

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores (B, M, vocabulary) of the next tokens."""
        return self._head(hidden)
