"""Keys and values of transformers' layers, read and written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KeyValues:
    """Replacement of the cache of one layer of transformers: prepends its past, and keeps the result."""

    def __init__(self, past: Tensor | None = None) -> None:
        self.past = past
        """Keys and values (B, 2, G, N, E) of earlier tokens."""
        self.held: Tensor | None = None
        """Keys and values (B, 2, G, N, E) of all tokens so far, after the rotary embedding."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, G, M, E) of the new tokens, after those of the past."""
        held = torch.stack([keys, values], dim=1)
        self.held = held if self.past is None else torch.cat([self.past, held], dim=3)
        return self.held[:, 0], self.held[:, 1]
