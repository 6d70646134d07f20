"""Resize images and keep their aspect ratio."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import Size, height_width, refuse_normalised
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import padded, scaled
from ..randomness.per_sample import Draws


class ResizeWithPad(ImageTransform):
    """Resizes images bilinearly until they fit into `size`, and fills the rest, before `normalize_image`.

    As pi0 does it (224 pixels, centred) and SmolVLA (512, `place: bottom_right`); their range of -1 to 1 is that of
    `{type: normalize_image, stats: half}` after it. LeRobot's versions resize without antialiasing.
    """

    class Config(ImageTransformConfig):
        """Resize images and keep their aspect ratio."""

        type: Literal["resize_with_pad"]
        """Resize images, keep their aspect ratio and fill the rest; before `normalize_image`."""
        size: Size
        """Size in pixels: one number for a square, or `[height, width]`."""
        fill: float = Field(default=0.0, ge=0.0, le=1.0)
        """Brightness of the rest: 0 is black, 1 is white."""
        place: Literal["center", "top_left", "bottom_right"] = "center"
        """Where the image lies."""
        antialias: bool = True
        """Average over the pixels that fall together."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, with the images resized; raises SpecError for images that are normalised already."""
        refuse_normalised(cls.cameras(config, inputs), "resize_with_pad", "fills with a brightness in [0, 1]")
        height, width = height_width(config.size)
        return cls.resized(config, inputs, (height, width), f"resized to {height} x {width} with padding")

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="resize_with_pad", size=[12, 20])

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, 3, h, w)."""
        size, place = height_width(self.config.size), self.config.place
        ratio = max(images.shape[-2] / size[0], images.shape[-1] / size[1])
        inner = (max(1, int(images.shape[-2] / ratio)), max(1, int(images.shape[-1] / ratio)))
        spare = (size[0] - inner[0], size[1] - inner[1])
        halves = {"center": (spare[0] // 2, spare[1] // 2), "top_left": (0, 0), "bottom_right": spare}
        return padded(scaled(images, inner, self.config.antialias), size, halves[place], self.config.fill)
