"""Segments of a sequence, each of one origin such as frames or prompt, and their concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..base import Batch
from ..images.specs import fold_frames
from .base import VlmFamily
from .inputs import VlmInputs
from .sequence import Places


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of every sample."""

    embeddings: Tensor
    """(B, n, D)."""
    mask: Tensor
    """(B, n), True where valid."""
    places: Places
    deep: Sequence[Tensor] = ()
    """(B, n, D), to add to the tokens after each of the first layers."""

    @property
    def count(self) -> int:
        return self.mask.shape[1]

    @classmethod
    def sequential(cls, embeddings: Tensor, axes: int, mask: Tensor | None = None) -> Segment:
        """Build a segment of consecutive tokens (B, n, D); all are valid without a mask (B, n)."""
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return cls(embeddings, mask, Places.sequential(embeddings.shape[1], axes, embeddings.device))

    @classmethod
    def of_frames(
        cls, family: VlmFamily, model: Any, inputs: VlmInputs, observations: Batch, dtype: torch.dtype
    ) -> Segment:
        """Build the segment of all cameras' frames, step by step; `<camera>_is_pad` (B, T) masks frames."""
        images = fold_frames(observations, inputs.cameras, dtype)  # (B * F, 3, H, W)
        encoded = family.encode_frames(model, images)
        valid = _valid_frames(observations, inputs, images.device)  # (B, F)
        places = family.frame_places((images.shape[2], images.shape[3]), images.device)
        size = (valid.shape[0], -1)
        return cls(
            encoded.embeddings.unflatten(0, size).flatten(1, 2),
            valid.repeat_interleave(len(places.advance), dim=1),
            places.repeat(valid.shape[1]),
            [deep.unflatten(0, size).flatten(1, 2) for deep in encoded.deep],
        )

    @classmethod
    def concatenate(cls, segments: Sequence[Segment]) -> Segment:
        """Concatenate segments; those without `deep` features add zeros."""
        counts = [segment.count for segment in segments]
        return cls(
            torch.cat([segment.embeddings for segment in segments], dim=1),
            torch.cat([segment.mask for segment in segments], dim=1),
            Places.concatenate([segment.places for segment in segments]),
            [
                pad(deep, (0, 0, sum(counts[:index]), sum(counts[index + 1 :])))
                for index, segment in enumerate(segments)
                for deep in segment.deep
            ],
        )


def _valid_frames(observations: Batch, inputs: VlmInputs, device: torch.device) -> Tensor:
    """Return a mask (B, T * V) of frames that are not padding."""
    valid = [
        ~observations[f"{key}_is_pad"].bool()
        if f"{key}_is_pad" in observations
        else torch.ones(observations[key].shape[:2], dtype=torch.bool, device=device)
        for key in inputs.cameras
    ]
    return torch.stack(valid, dim=2).flatten(1)
