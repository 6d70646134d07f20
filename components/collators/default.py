"""Stack samples into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...schemas.errors import DatasetError
from ...schemas.part import PartConfig
from ...schemas.specs import Spec, Specs
from ..base import Collator, Facts


class DefaultCollator(Collator):
    """Stacks tensors, arrays and numbers; strings become a list."""

    class Config(PartConfig):
        """Stack samples into a batch."""

        type: Literal["default"]
        """Stack samples as they are."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, unchanged."""
        return dict(inputs)

    @classmethod
    def tiny(cls, directory: Path) -> Config:
        return cls.Config(type="default")

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples (T, ...) -> batch (B, T, ...)."""
        return stack(samples)


def stack(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of the samples; raises DatasetError, naming key and sample, where they differ in keys or shapes."""
    if not samples:
        raise DatasetError("there are no samples to make a batch of")
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
