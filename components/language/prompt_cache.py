"""Cache of a frozen encoder's features of prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import version_of

_MOST = 512  # prompts; a dataset has far fewer instructions


class PromptCache:
    """Features of an encoder by prompt, valid as long as its weights do not change.

    The host identifies prompts by keys from the collator, so that nothing waits for the device. Each prompt
    is encoded alone, so its features do not depend on the batch in which it first appeared. Copies start
    empty.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, tuple[Tensor, ...]] = {}
        self._weights: tuple[Any, ...] = ()

    def recall(
        self, encoder: nn.Module, keys: Sequence[Hashable], encode: Callable[[int], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return features (B, ...) of the prompts with these keys; `encode(i)` returns the i-th (1, ...)."""
        weights = tuple((p.data_ptr(), version_of(p), p.dtype) for p in encoder.parameters())
        if weights != self._weights:
            self._rows, self._weights = {}, weights
        found = {key: self._rows.pop(key) for key in set(keys) if key in self._rows}
        for position, key in enumerate(keys):
            if key not in found:
                with torch.inference_mode(False), torch.no_grad():
                    found[key] = tuple(output[0].clone() for output in encode(position))
        self._rows |= found  # the latest come last
        for key in list(self._rows)[: max(len(self._rows) - _MOST, 0)]:
            del self._rows[key]
        return tuple(torch.stack(column) for column in zip(*(found[key] for key in keys), strict=True))

    def __reduce__(self) -> tuple[type[PromptCache], tuple[()]]:
        return PromptCache, ()


def is_constant(encoder: nn.Module) -> bool:
    """Return whether the features of a prompt stay the same: frozen, in evaluation mode, not traced."""
    return not (
        encoder.training
        or torch.compiler.is_compiling()
        or any(parameter.requires_grad for parameter in encoder.parameters())
    )
