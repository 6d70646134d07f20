from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import ImageSize, height_width, refuse_normalized_images
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import pad_images, resize_images
from ..randomness.per_sample import Draws


class ResizeWithPad(ImageTransform):
    """Bilinear resizing into `size` that preserves the aspect ratio and pads; before `normalize_image`.

    pi0 (224 pixels, centered) and SmolVLA (512, `place: bottom_right`) use it; a later
    `{type: normalize_image, stats: half}` gives their range of -1 to 1. LeRobot's versions resize without
    antialiasing.
    """

    idempotent = True

    class Config(ImageTransformConfig):
        type: Literal["resize_with_pad"]
        size: ImageSize
        """Size in pixels: one number for a square, or `[height, width]`."""
        fill: float = Field(default=0.0, ge=0.0, le=1.0)
        """Brightness of the padding: 0 is black, 1 is white."""
        place: Literal["center", "top_left", "bottom_right"] = "center"
        """Position of the image."""
        antialias: bool = True
        """Average over the pixels that fall together when shrinking."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs with resized images; raise SpecError for images that are already normalized."""
        refuse_normalized_images(
            cls.cameras(config, inputs), "resize_with_pad", "fills with a brightness in [0, 1]"
        )
        height, width = height_width(config.size)
        return cls.resized(config, inputs, (height, width), f"resized to {height} x {width} with padding")

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="resize_with_pad", size=[12, 20])

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Map images (B, T, 3, H, W) to (B, T, 3, h, w)."""
        size, place = height_width(self.config.size), self.config.place
        ratio = max(images.shape[-2] / size[0], images.shape[-1] / size[1])
        inner = (max(1, int(images.shape[-2] / ratio)), max(1, int(images.shape[-1] / ratio)))
        spare = (size[0] - inner[0], size[1] - inner[1])
        halves = {"center": (spare[0] // 2, spare[1] // 2), "top_left": (0, 0), "bottom_right": spare}
        return pad_images(
            resize_images(images, inner, self.config.antialias), size, halves[place], self.config.fill
        )
