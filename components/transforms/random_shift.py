"""Random shifts, the augmentation of DrQ."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..images.fusion import Plan, Stage
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import take
from ..randomness.per_sample import Draws


class RandomShift(ImageTransform):
    """Moves every image by up to `pixels` in each direction, in training only; edge pixels fill the gap.

    The same as padding with edge pixels and cropping at random (Kostrikov et al., "Image Augmentation Is All You
    Need", 2020). All steps of one camera of one sample move together.
    """

    stage = Stage.SHIFT

    class Config(ImageTransformConfig):
        """Random shifts, the augmentation of DrQ."""

        type: Literal["random_shift"]
        """Shift images at random while training."""
        pixels: int = Field(default=4, ge=1)
        """Largest shift in each direction, in pixels."""

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="random_shift", pixels=2)

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, T, 3, H, W) -> the same size and dtype."""
        if not self.training:
            return images
        shift, device = self._draw(draws), images.device
        height, width = images.shape[-2:]
        rows = (torch.arange(height, device=device) + shift[:, :1]).clamp_(0, height - 1)  # (B, H)
        columns = (torch.arange(width, device=device) + shift[:, 1:]).clamp_(0, width - 1)  # (B, W)
        return take(images, rows, columns)

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Move the window."""
        plan.corners = plan.corners + self._draw(draws)

    def _draw(self, draws: Draws) -> Tensor:
        """Shifts (B, 2) down and to the right."""
        return draws.integers(-self.config.pixels, self.config.pixels + 1, 2)
