"""Reads a sequence through the layers of a language model, and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base import Feature
from ..layers.kv_cache import CACHE, KeyValues
from ..layers.recomputation import take_over
from ..layers.rotary import RotaryEmbedding
from .base import Family


@dataclass(frozen=True)
class Read:
    """What the layers made of a sequence."""

    layers: Sequence[Tensor]
    """Hidden states (B, N, D) after each layer."""
    key_values: Sequence[Tensor]
    """Keys and values (B, 2, G, N, E) of each layer; none where the family has none."""


def read(
    layers: Iterable[nn.Module],
    hidden: Tensor,
    visible: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    past: Tensor | None = None,
    deep: Sequence[Tensor] = (),
) -> Read:
    """Hidden states (B, N, D) through `layers`, under mask visible (B, 1, N, N).

    `past` holds keys and values (B, L, 2, G, M, E) of earlier tokens, which visible (B, 1, N, M + N) then covers.
    `deep` (B, N, D) is added after the first layers.
    """
    states, pairs = [], []
    for index, layer in enumerate(layers):
        if getattr(layer, "gradient_checkpointing", False):
            take_over(layer)  # transformers would drop keys and values
        cache = KeyValues(None if past is None else past[:, index])
        grown = {} if rotary is None else {"position_embeddings": rotary, CACHE: cache}
        hidden = layer(hidden, attention_mask=visible, **grown)
        if index < len(deep):
            hidden = hidden + deep[index]
        states.append(hidden)
        if cache.held is not None:
            pairs.append(cache.held)
    return Read(states, pairs)


class Continuation:
    """Goes on where a model stopped reading, with the same weights: the `Decoder` of its key_values."""

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        head: Callable[[Tensor], Tensor],
        rotary: RotaryEmbedding,
        scale: float,
    ) -> None:
        """`head` scores the token that follows hidden states; embeddings are multiplied by `scale`."""
        self._family, self._model, self._head = family, model, head
        self._rotary, self._scale = rotary, scale

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, M) as embeddings (B, M, D)."""
        embedded: Tensor = self._family.embedding(self._model)(ids)
        return embedded * self._scale

    def extend(self, past: Feature, embeddings: Tensor) -> tuple[Tensor, Feature]:
        """Hidden states (B, M, D) of embeddings that follow `past`, and the past with their keys and values."""
        assert past.end is not None
        assert past.mask is not None
        batch, count = embeddings.shape[:2]
        steps = torch.arange(count, device=embeddings.device)
        positions = (past.end[:, None] + steps).expand(self._family.axes, batch, count)
        earlier = past.mask[:, None, :].expand(batch, count, -1)
        among = (steps[None, :] <= steps[:, None]).expand(batch, count, count)
        visible = torch.cat([earlier, among], dim=2)[:, None]  # (B, 1, M, N + M)
        done = read(
            self._family.layers(self._model),
            self._family.enter(self._model, embeddings, positions),
            visible,
            self._rotary(positions, embeddings.dtype),
            past.values,
        )
        mask = torch.cat([past.mask, past.mask.new_ones(batch, count)], dim=1)
        longer = Feature(torch.stack(list(done.key_values), dim=1), mask, past.end + count, self)
        return self._family.leave(self._model, done.layers[-1]), longer

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (B, M, vocabulary) of the tokens that follow."""
        return self._head(hidden)
