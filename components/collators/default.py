from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ...schemas.errors import DatasetError
from ...schemas.part import PartConfig
from ...schemas.specs import Spec, Specs
from ..base import Collator, Facts


class DefaultCollator(Collator):
    """Stack of tensors, arrays and numbers; strings become a list."""

    class Config(PartConfig):
        type: Literal["default"]

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs unchanged."""
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="default")

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stack samples (T, ...) to a batch (B, T, ...)."""
        return stack(samples)


def stack(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples to a batch; raise DatasetError with key and sample if they differ in keys or shapes."""
    if not samples:
        raise DatasetError("a batch needs at least one sample")
    keys = samples[0].keys()
    for position, sample in enumerate(samples):
        if sample.keys() != keys:
            odd = sorted(sample.keys() ^ keys)
            raise DatasetError(
                f"sample {position} of the batch and sample 0 differ in keys: {', '.join(odd)}"
            )
    return {key: _join(key, [sample[key] for sample in samples]) for key in keys}


def _join(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], str):
        return values
    tensors = [
        value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value)) for value in values
    ]
    first = tensors[0]
    for position, tensor in enumerate(tensors):
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise DatasetError(
                f"`{key}` of sample {position} of the batch is {tuple(tensor.shape)} {tensor.dtype}, "
                f"of sample 0 it is {tuple(first.shape)} {first.dtype}"
            )
    return torch.stack(tensors)
