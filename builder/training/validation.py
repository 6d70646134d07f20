"""Losses over held-out episodes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ...schemas.recipe import TrainingSection
from ..policy import BasePolicyModel
from .batches import Collate, to_device
from .ema import WeightAverage
from .seeds import mix
from .sharding import apart


@torch.no_grad()
def validate(
    policy: BasePolicyModel,
    dataset: Dataset[Any],
    collate: Collate,
    section: TrainingSection,
    accelerator: Accelerator,
    average: WeightAverage | None,
) -> dict[str, float]:
    """Mean losses over all samples, with the weights that are saved, as `validation/<loss>`."""
    loader = DataLoader(dataset, batch_size=section.batch_size, collate_fn=collate)
    total: int = len(dataset)  # type: ignore[arg-type]
    policy.eval()
    sums: dict[str, float] = {}
    count = 0
    with average.applied() if average is not None else torch.no_grad(), accelerator.autocast():
        for index, batch in enumerate(loader):
            torch.manual_seed(mix(section.seed, 0, index, 0))
            size = min(section.batch_size, total - count)
            output = policy(to_device(batch, accelerator.device))
            for name, value in output.items():
                if value.ndim == 0:
                    sums[name] = sums.get(name, 0.0) + float(value) * size
            count += size
        apart(policy)
    policy.train()
    return {f"validation/{name}": value / count for name, value in sums.items()}
