"""Reads a sequence through the layers of a language model, and goes on where it stopped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GemmaModel

from ..base import Feature
from .family import Family
from .sequence import Rotary

_CACHE = "cache" if "cache" in inspect.signature(GemmaModel.forward).parameters else "past_key_values"
"""What layers of transformers call the keys and values of earlier tokens."""


class KeyValues:
    """Stands where a layer of transformers expects a cache: joins the past of this layer to what it sees, and keeps that."""

    def __init__(self, past: Tensor | None = None) -> None:
        """`past` holds keys and values (B, 2, G, N, E) of earlier tokens."""
        self._past = past
        self.held: Tensor | None = None
        """Keys and values (B, 2, G, N, E) of all tokens so far, after the rotary embedding."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, M, E) of the tokens that are read, those of the past before them."""
        held = torch.stack([keys, values], dim=1)
        self.held = held if self._past is None else torch.cat([self._past, held], dim=3)
        return self.held[:, 0], self.held[:, 1]


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
        before = None if past is None else past[:, index]
        hidden, held = _through(layer, hidden, visible, rotary, before)
        if index < len(deep):
            hidden = hidden + deep[index]
        states.append(hidden)
        if held is not None:
            pairs.append(held)
    return Read(states, pairs)


def _through(
    layer: Any, hidden: Tensor, visible: Tensor, rotary: tuple[Tensor, Tensor] | None, past: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Hidden states (B, N, D) after one layer, and its keys and values.

    Where the layer is to save memory by computing itself again in the backward pass, it does so here: by itself,
    transformers would drop the keys and values.
    """

    def run(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        cache = KeyValues(past)
        options: dict[str, Any] = {"attention_mask": visible}
        if rotary is not None:
            options |= {"position_embeddings": rotary, _CACHE: cache}
        if again:
            layer.gradient_checkpointing = False
        try:
            return layer(hidden, **options), cache.held
        finally:
            layer.gradient_checkpointing = again

    again = getattr(layer, "gradient_checkpointing", False)
    if again and torch.is_grad_enabled():
        done: tuple[Tensor, Tensor | None] = layer._gradient_checkpointing_func(run, hidden)
        return done
    return run(hidden)


class Continuation:
    """Goes on where a model stopped reading, with the same weights: the `Decoder` of its key_values."""

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        head: Callable[[Tensor], Tensor],
        rotary: Rotary,
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
