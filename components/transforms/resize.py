"""Resize images."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.fusion import Plan, Stage
from ..images.specs import Size, height_width
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import scaled
from ..randomness.per_sample import Draws


class Resize(ImageTransform):
    """Resizes images bilinearly, averaging over the pixels that fall together (antialiasing).

    Bytes stay bytes, rounded to the nearest level; the last level may differ between a CPU and a GPU.
    """

    stage = Stage.RESIZE

    class Config(ImageTransformConfig):
        """Resize images."""

        type: Literal["resize"]
        """Resize images bilinearly, with antialiasing."""
        size: Size
        """Size in pixels: one number for a square, or `[height, width]`; the aspect ratio is not kept."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, with the images resized."""
        height, width = height_width(config.size)
        return cls.resized(config, inputs, (height, width), f"resized to {height} x {width}")

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="resize", size=[12, 20])

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, 3, h, w)."""
        return scaled(images, height_width(self.config.size))

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Resize the window."""
        plan.size = height_width(self.config.size)
