"""Fusion of consecutive image transforms that end in a normalization into one pass of a kernel.

Each transform adds its operation on bytes to a plan, which the final normalization executes. The same random
numbers are drawn as by single transforms, but intermediate results are not rounded to bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from ..base import Batch
from ..kernels.dispatch import uses_kernel
from ..kernels.image_batch import image_batch
from ..randomness.per_sample import Draws


class FusedStage(IntEnum):
    """Operations of the kernel, in this order, each at most once."""

    SHIFT = 1
    CUT = 2
    RESIZE = 3
    COLOR = 4
    NORMALIZE = 5


@dataclass
class Plan:
    """Operations on the images of one camera, bytes (B, T, 3, H, W)."""

    corners: Tensor
    """Top and left (B, 2) of the cropped windows, in whole pixels; edge pixels fill areas outside the image."""
    window: tuple[int, int]
    """Height and width of the windows."""
    size: tuple[int, int]
    """Height and width after resizing the windows."""
    colors: Tensor | None = None
    """(B, 4): factors of brightness, contrast and saturation, and shift of the hue in circles."""
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)

    @classmethod
    def of(cls, images: Tensor) -> Plan:
        """Return a plan that leaves images unchanged."""
        height, width = images.shape[-2:]
        return cls(torch.zeros(len(images), 2, device=images.device), (height, width), (height, width))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images (B, T, 3, h, w), float32."""
        height, width = (torch.full_like(self.corners[:, :1], side) for side in self.window)
        boxes = torch.cat([self.corners, height, width], dim=1)
        resizes = self.size != self.window
        return image_batch(
            images, boxes, self.colors, self.size, mean=self.mean, std=self.std, resizes=resizes
        )


class Staged(Protocol):
    """Image transform that can describe its operation."""

    stage: FusedStage
    keys: Sequence[str]
    training: bool

    def draws(self, batch: Batch, values: Tensor, key: str = "") -> Draws:
        """Return random numbers for one camera."""
        ...

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Add the operation of this transform in training to the plan."""
        ...


def fusable_chains(transforms: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Group the transforms, in order; a group of several can run as one, and ends in a normalization."""
    found: list[list[nn.Module]] = []
    for transform in transforms:
        before = found[-1][-1] if found else None
        joins = (
            _staged(transform)
            and _staged(before)
            and before.stage < transform.stage
            and tuple(before.keys) == tuple(transform.keys)
        )
        found[-1:] = [[*found[-1], transform]] if joins else [*found[-1:], [transform]]
    return [part for chain in found for part in ([chain] if _complete(chain) else [[each] for each in chain])]


def run_fused(chain: Sequence[Any], batch: Batch) -> dict[str, Any]:
    """Return the batch after a chain of transforms, run as one."""
    plans = {key: Plan.of(batch[key]) for key in chain[0].keys if key in batch}
    for transform in chain:
        for key, plan in plans.items():
            transform.plan(plan, transform.draws(batch, batch[key], key))
    return {**batch, **{key: plan(batch[key]) for key, plan in plans.items()}}


def can_fuse(chain: Sequence[Any], batch: Batch) -> bool:
    """Return whether the kernel can run these transforms on a batch: in training, on bytes on a GPU."""
    if not _complete(chain):
        return False
    images = [batch[key] for key in chain[0].keys if key in batch]
    return (
        bool(images)
        and bool(chain[0].training)
        and all(uses_kernel(x) and x.dtype == torch.uint8 for x in images)
    )


def _staged(module: nn.Module | None) -> TypeGuard[Any]:
    return getattr(module, "stage", None) is not None


def _complete(chain: Sequence[Any]) -> bool:
    return _staged(chain[-1]) and chain[-1].stage is FusedStage.NORMALIZE
