from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import refuse_normalized_images, with_size
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import pad_images
from ..randomness.per_sample import Draws


class PadSquare(ImageTransform):
    """Padding of images to centered squares of their longer side, so that a resize preserves proportions.

    Must precede `normalize_image`. `resize_with_pad` does the same and resizes.
    """

    idempotent = True

    class Config(ImageTransformConfig):
        type: Literal["pad_square"]
        fill: float = Field(default=0.0, ge=0.0, le=1.0)
        """Brightness of the padding: 0 is black, 1 is white."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs with square images; raise SpecError for images that are already normalized."""
        cameras = cls.cameras(config, inputs)
        refuse_normalized_images(cameras, "pad_square", "fills with a brightness in [0, 1]")
        sides = {key: max(int(dim) for dim in spec.dims[3:]) for key, spec in cameras.items()}
        squares = {key: with_size(cameras[key], (s, s), f"padded to {s} x {s}") for key, s in sides.items()}
        return {**inputs, **squares}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="pad_square")

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Map images (B, T, 3, H, W) to (B, T, 3, S, S), with S the larger of H and W."""
        height, width = images.shape[-2:]
        side = max(height, width)
        return pad_images(images, (side, side), ((side - height) // 2, (side - width) // 2), self.config.fill)
