from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..images.transform import ImageTransform, ImageTransformConfig
from ..randomness.per_sample import Draws


class Blank(ImageTransform):
    """Black images, in training and in evaluation.

    Makes the blind control of a policy whose backbone reads images together with the instruction and cannot
    run without images.
    """

    class Config(ImageTransformConfig):
        type: Literal["blank"]

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="blank")

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return zeros of the same size and dtype as the images (B, T, 3, H, W)."""
        return images.new_zeros(images.shape)
