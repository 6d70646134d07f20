"""The stretches of a sequence: tokens of one origin each, such as the frames or the prompt, and how they are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..base import Batch
from ..images.specs import fold_frames
from .base import Family
from .inputs import Inputs
from .sequence import Places


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of every sample."""

    embeddings: Tensor
    """(B, n, D)."""
    mask: Tensor
    """(B, n), True where valid."""
    places: Places
    deep: Sequence[Tensor] = ()
    """(B, n, D), what is added to the tokens after each of the first layers."""

    @property
    def count(self) -> int:
        return self.mask.shape[1]

    @classmethod
    def in_line(cls, embeddings: Tensor, axes: int, mask: Tensor | None = None) -> Stretch:
        """Tokens (B, n, D) one after the other; all are valid where there is no mask (B, n)."""
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return cls(embeddings, mask, Places.in_line(embeddings.shape[1], axes, embeddings.device))

    @classmethod
    def of_frames(
        cls, family: Family, model: Any, inputs: Inputs, observations: Batch, dtype: torch.dtype
    ) -> Stretch:
        """The frames of all cameras, step by step; those that `<camera>_is_pad` (B, T) marks are hidden."""
        images = fold_frames(observations, inputs.cameras, dtype)  # (B * F, 3, H, W)
        seen = family.see(model, images)
        shown = _shown(observations, inputs, images.device)  # (B, F)
        places = family.frame_places((images.shape[2], images.shape[3]), images.device)
        size = (len(shown), -1)
        return cls(
            seen.embeddings.unflatten(0, size).flatten(1, 2),
            shown.repeat_interleave(len(places.advance), dim=1),
            places.repeated(shown.shape[1]),
            [deep.unflatten(0, size).flatten(1, 2) for deep in seen.deep],
        )

    @classmethod
    def joined(cls, stretches: Sequence[Stretch]) -> Stretch:
        """Several stretches, end to end; to those without anything to add, zeros are added."""
        counts = [stretch.count for stretch in stretches]
        return cls(
            torch.cat([stretch.embeddings for stretch in stretches], dim=1),
            torch.cat([stretch.mask for stretch in stretches], dim=1),
            Places.joined([stretch.places for stretch in stretches]),
            [
                pad(deep, (0, 0, sum(counts[:index]), sum(counts[index + 1 :])))
                for index, stretch in enumerate(stretches)
                for deep in stretch.deep
            ],
        )


def _shown(observations: Batch, inputs: Inputs, device: torch.device) -> Tensor:
    """Frames (B, T * V) that are no padding."""
    shown = [
        ~observations[f"{key}_is_pad"].bool()
        if f"{key}_is_pad" in observations
        else torch.ones(observations[key].shape[:2], dtype=torch.bool, device=device)
        for key in inputs.cameras
    ]
    return torch.stack(shown, dim=2).flatten(1)
