"""Features of a backbone as entries of a batch, which take the place of running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ...components.base import Batch, Feature

STORED = "stored."
"""Prefix of the keys of such entries."""
_FIELDS = ("values", "mask", "end")


def as_entries(features: Mapping[str, Feature]) -> dict[str, Tensor]:
    """Return features by `<backbone>.<output>` as tensors by key.

    Raise ValueError for one that holds more.
    """
    entries = {}
    for name, feature in features.items():
        if feature.decoder is not None:
            raise ValueError(f"`{name}` continues in the language model that made it")
        for field in _FIELDS:
            if (value := getattr(feature, field)) is not None:
                entries[_key(name, field)] = value
    return entries


def features_in(batch: Batch, backbone: str, outputs: Iterable[str]) -> dict[str, Feature] | None:
    """Return the features of a backbone by `<backbone>.<output>`, or None if the batch does not hold them."""
    names = [f"{backbone}.{output}" for output in outputs]
    if not names or any(_key(name, "values") not in batch for name in names):
        return None
    return {name: Feature(**_fields(batch, name)) for name in names}


def _fields(batch: Batch, name: str) -> dict[str, Any]:
    return {field: batch.get(_key(name, field)) for field in _FIELDS}


def _key(name: str, field: str) -> str:
    return f"{STORED}{name}.{field}"
