"""What a run is made of, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from ...schemas.recipe import TrainingSection
from ..data.sampler import MixtureSampler, ResumableSampler
from ..policy import BasePolicyModel
from .batches import Collate, Order


@dataclass(frozen=True)
class Job:
    """All that a run is made of."""

    policy: BasePolicyModel
    dataset: Dataset[Any]
    collate: Collate
    section: TrainingSection
    directory: Path
    recipe: dict[str, Any]
    """The resolved recipe, for the identity of the run."""
    fingerprint: str
    """Of the dataset as it is used."""
    validation: Dataset[Any] | None = None
    keyed: bool = False
    """Whether the dataset is indexed by `(index, key)`, to draw its augmentation by the sample's key."""
    profile: bool = False
    """Whether to look where the time of the first steps goes."""
    notes: Sequence[str] = ()
    """Notes for a person before the first step."""
    verify: bool = True
    """True to hold a checkpoint to resume from against its manifest."""
    shares: Sequence[tuple[int, float]] | None = None
    """Size and weight of each of several datasets that are drawn from by weight; the dataset has them end to end."""


@dataclass(frozen=True)
class Result:
    """Where training ended."""

    policy: BasePolicyModel
    checkpoint: Path
    steps: int
    taken: int
    """Steps that this call took."""
    loss: float
    """Mean over the last log interval; NaN where no step was left to take."""
    samples_per_second: float | None
    """Speed of training alone, after the first step; None where no other was taken."""


def order_of(job: Job, accelerator: Accelerator, step: int) -> Order:
    """The samples of this process, batch by batch, from a step on."""
    section = job.section
    place: dict[str, int] = {
        "batch_size": section.batch_size,
        "seed": section.seed,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "start_step": step * section.accumulate,
    }
    if job.shares is not None:
        return MixtureSampler(job.shares, **place)
    return ResumableSampler(len(job.dataset), **place)  # type: ignore[arg-type]
