"""The inputs of a run, and its result."""

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
    """The inputs of a run."""

    policy: BasePolicyModel
    dataset: Dataset[Any]
    collate: Collate
    section: TrainingSection
    directory: Path
    recipe: dict[str, Any]
    """The resolved recipe, for the identity of the run."""
    fingerprint: str
    """Fingerprint of the dataset as it is used."""
    validation: Dataset[Any] | None = None
    keyed: bool = False
    """True for a dataset that is indexed by `(index, key)`, to draw its augmentation by the sample's key."""
    profile: bool = False
    """True to measure how the time of the first steps is spent."""
    notes: Sequence[str] = ()
    """Lines to show before the first step."""
    verify: bool = True
    """True to verify a checkpoint against its manifest before resuming from it."""
    shares: Sequence[tuple[int, float]] | None = None
    """Size and weight of each dataset of a mixture; `dataset` holds them end to end."""


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    policy: BasePolicyModel
    checkpoint: Path
    steps: int
    taken: int
    """Steps that this call took."""
    loss: float
    """Mean over the last log interval; NaN if no step was left to take."""
    samples_per_second: float | None
    """Speed of the steps after the first; None if no other was taken."""
    startup_seconds: float = 0.0
    """Time from the start of training to the first step."""
    first_step_seconds: float | None = None
    """Time of the first step, which compiles; None if no step was left to take."""


def order_of(job: Job, accelerator: Accelerator, step: int) -> Order:
    """Return the order of this process's samples, batch by batch, from a step on."""
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
    return ResumableSampler(len(job.dataset), accumulate=section.accumulate, **place)  # type: ignore[arg-type]
