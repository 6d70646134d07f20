"""What a run is made of, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...schemas.recipe import TrainingSection
from ..policy import BasePolicyModel
from .batches import Collate


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
    """What a person should know before the first step."""
    verify: bool = True
    """Whether a checkpoint to resume from is held against its manifest."""
    shares: Sequence[tuple[int, float]] | None = None
    """Size and weight of each of several datasets that are drawn from by weight; the dataset has them end to end."""


@dataclass(frozen=True)
class Result:
    """Where training ended."""

    policy: BasePolicyModel
    checkpoint: Path
    steps: int
    loss: float
    """Mean over the last log interval; NaN where no step was left to take."""
    samples_per_second: float
