"""Features of instructions, which change less often than anything else that a robot observes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...components.base import Feature
from ..policy.cached_features import as_entries
from ..policy.recipe_policy import RecipePolicy

_MOST = 512
"""Instructions whose features are kept, for each backbone."""
_IDS = ".input_ids"


class TextFeatures:
    """Features of the backbones that read texts alone, each instruction encoded once."""

    def __init__(self, policy: RecipePolicy) -> None:
        self._policy = policy
        self._reads = policy.text_backbones
        self._rows: dict[str, OrderedDict[Hashable, dict[str, Tensor]]] = {
            name: OrderedDict() for name in self._reads
        }

    def stored(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return entries of a batch that take the place of running these backbones, as far as they can.

        An instruction is recognized by its text, or by the key that the collator gives its tokens; a backbone
        whose texts have neither runs with the others.
        """
        entries: dict[str, Tensor] = {}
        for name, keys in self._reads.items():
            texts = [
                batch.get(f"{key.removesuffix(_IDS)}.key" if key.endswith(_IDS) else key) for key in keys
            ]
            if all(isinstance(text, list) for text in texts):
                entries |= self._of(name, keys, texts, batch)
        return entries

    def _of(
        self, name: str, keys: list[str], texts: list[Any], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return the features of the texts of a batch as its entries."""
        stems = tuple(key.removesuffix(_IDS) for key in keys)
        read = {key: value for key, value in batch.items() if key.startswith(stems)}
        shapes = tuple(value.shape[1:] for value in read.values() if isinstance(value, Tensor))
        held, rows = self._rows[name], []
        for row, text in enumerate(zip(*texts, strict=True)):
            known: Hashable = (text, shapes)
            if known not in held:
                one = {key: value[row : row + 1] for key, value in read.items()}
                device = self._policy.device
                moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in one.items()}
                features: dict[str, Feature] = self._policy.encode(name, moved)
                if any(feature.decoder is not None for feature in features.values()):
                    return {}
                held[known] = as_entries(features)
            held.move_to_end(known)
            rows.append(held[known])
        while len(held) > _MOST:
            held.popitem(last=False)
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]} if rows else {}


__all__ = ["TextFeatures"]
