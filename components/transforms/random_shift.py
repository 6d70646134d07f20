from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..images.fusion import FusedStage, Plan
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import gather_pixels
from ..randomness.per_sample import Draws


class RandomShift(ImageTransform):
    """Random shifts by up to `pixels` in each direction, in training only; edge pixels fill the gap.

    Equivalent to padding with edge pixels and a random crop, the augmentation of DrQ
    (Kostrikov et al., "Image Augmentation Is All You Need", 2020). All steps of one camera of one sample
    shift together.
    """

    stage = FusedStage.SHIFT

    class Config(ImageTransformConfig):
        type: Literal["random_shift"]
        pixels: int = Field(default=4, ge=1)
        """Largest shift in each direction, in pixels."""

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="random_shift", pixels=2)

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
        if not self.training:
            return images
        shift, device = self._draw(draws), images.device
        height, width = images.shape[-2:]
        rows = (torch.arange(height, device=device) + shift[:, :1]).clamp_(0, height - 1)  # (B, H)
        columns = (torch.arange(width, device=device) + shift[:, 1:]).clamp_(0, width - 1)  # (B, W)
        return gather_pixels(images, rows, columns)

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Shift the window."""
        plan.corners = plan.corners + self._draw(draws)

    def _draw(self, draws: Draws) -> Tensor:
        """Return shifts (B, 2) down and to the right."""
        return draws.integers(-self.config.pixels, self.config.pixels + 1, 2)
