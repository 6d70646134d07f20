from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.fusion import FusedStage, Plan
from ..images.specs import ImageSize, height_width
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import resize_images
from ..randomness.per_sample import Draws


class Resize(ImageTransform):
    """Bilinear resizing with antialiasing.

    Bytes stay bytes, rounded to the nearest level; the lowest bit may differ between a CPU and a GPU.
    """

    stage = FusedStage.RESIZE
    idempotent = True

    class Config(ImageTransformConfig):
        type: Literal["resize"]
        size: ImageSize
        """Size in pixels: one number for a square, or `[height, width]`; the aspect ratio may change."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs with resized images."""
        height, width = height_width(config.size)
        return cls.resized(config, inputs, (height, width), f"resized to {height} x {width}")

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="resize", size=[12, 20])

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Map images (B, T, 3, H, W) to (B, T, 3, h, w)."""
        return resize_images(images, height_width(self.config.size))

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Resize the window."""
        plan.size = height_width(self.config.size)
