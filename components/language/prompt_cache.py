"""What a frozen encoder made of prompts it has read, so that it reads each of them once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 512  # prompts; a dataset has far fewer instructions


class Remembered:
    """Rows of an encoder's outputs by prompt, for as long as its weights stay as they are.

    Prompts are told apart on the host, by keys that the collator gave, so that nothing waits for the device. Each is
    encoded by itself: what it gives does not depend on the batch in which it was first seen. Copies start empty.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, tuple[Tensor, ...]] = {}
        self._weights: tuple[Any, ...] = ()

    def recall(
        self, encoder: nn.Module, keys: Sequence[Hashable], encode: Callable[[int], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Outputs (B, ...) for the prompts that `keys` name; `encode(i)` gives those (1, ...) of the i-th."""
        weights = tuple((p.data_ptr(), p._version, p.dtype) for p in encoder.parameters())
        if weights != self._weights:
            self._rows, self._weights = {}, weights
        found = {key: self._rows.pop(key) for key in set(keys) if key in self._rows}
        for position, key in enumerate(keys):
            if key not in found:
                with torch.inference_mode(False), torch.no_grad():
                    found[key] = tuple(output[0].clone() for output in encode(position))
        self._rows |= found  # those just read come last
        for key in list(self._rows)[: max(len(self._rows) - _MOST, 0)]:
            del self._rows[key]
        return tuple(torch.stack(column) for column in zip(*(found[key] for key in keys), strict=True))

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return Remembered, ()


def at_rest(encoder: nn.Module) -> bool:
    """Whether an encoder gives the same for the same prompt from now on: frozen, in evaluation mode, not being traced."""
    return not (
        encoder.training
        or torch.compiler.is_compiling()
        or any(parameter.requires_grad for parameter in encoder.parameters())
    )
