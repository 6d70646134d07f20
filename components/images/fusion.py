"""Transforms of images that follow each other, or a normalisation alone, done in one pass by a kernel.

Each transform says in a plan what it would do to bytes; the last, a normalisation, has it done. The same numbers are
drawn as by the transforms one by one, but nothing is rounded to bytes in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from ..base import Batch
from ..kernels.dispatch import fused as on_gpu
from ..kernels.image_batch import image_batch
from ..randomness.per_sample import Draws

Size = tuple[int, int]


class Stage(IntEnum):
    """What a kernel does to images, in this order, each at most once."""

    SHIFT = 1
    CUT = 2
    RESIZE = 3
    COLOUR = 4
    NORMALISE = 5


@dataclass
class Plan:
    """What is to be done to images from one camera, bytes (B, T, 3, H, W)."""

    corners: Tensor
    """Top and left (B, 2) of the windows that are cut, in whole pixels; where one reaches outside, edge pixels fill it."""
    window: Size
    """Height and width of the windows."""
    size: Size
    """Height and width that these are resized to."""
    colours: Tensor | None = None
    """(B, 4): factors of brightness, contrast and saturation, and turn of hue in circles."""
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)

    @classmethod
    def of(cls, images: Tensor) -> Plan:
        """Leave the images as they are."""
        height, width = images.shape[-2:]
        return cls(torch.zeros(len(images), 2, device=images.device), (height, width), (height, width))

    def __call__(self, images: Tensor) -> Tensor:
        """The images (B, T, 3, h, w), float32."""
        height, width = (torch.full_like(self.corners[:, :1], side) for side in self.window)
        boxes = torch.cat([self.corners, height, width], dim=1)
        resizes = self.size != self.window
        return image_batch(
            images, boxes, self.colours, self.size, mean=self.mean, std=self.std, resizes=resizes
        )


class Staged(Protocol):
    """A transform of images that can say what it would do."""

    stage: Stage
    keys: Sequence[str]
    training: bool

    def draws(self, batch: Batch, values: Tensor, key: str = "") -> Draws:
        """Random numbers for one camera."""
        ...

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Add to the plan what this transform does in training."""
        ...


def chains(transforms: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """The transforms in order; in one list those that can run as one, in which the last normalises images."""
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
    return [part for chain in found for part in ([chain] if _whole(chain) else [[each] for each in chain])]


def fused(chain: Sequence[Any], batch: Batch) -> dict[str, Any]:
    """The batch after a chain of transforms that run as one."""
    plans = {key: Plan.of(batch[key]) for key in chain[0].keys if key in batch}
    for transform in chain:
        for key, plan in plans.items():
            transform.plan(plan, transform.draws(batch, batch[key], key))
    return {**batch, **{key: plan(batch[key]) for key, plan in plans.items()}}


def fuses(chain: Sequence[Any], batch: Batch) -> bool:
    """Whether the kernel does on a batch what these transforms do: in training, with bytes that lie on a GPU."""
    if not _whole(chain):
        return False
    images = [batch[key] for key in chain[0].keys if key in batch]
    return (
        bool(images) and bool(chain[0].training) and all(on_gpu(x) and x.dtype == torch.uint8 for x in images)
    )


def _staged(module: nn.Module | None) -> TypeGuard[Any]:
    return getattr(module, "stage", None) is not None


def _whole(chain: Sequence[Any]) -> bool:
    return _staged(chain[-1]) and chain[-1].stage is Stage.NORMALISE
