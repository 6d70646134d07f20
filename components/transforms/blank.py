"""Blank images."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..images.transform import ImageTransform, ImageTransformConfig
from ..randomness.per_sample import Draws


class Blank(ImageTransform):
    """Makes every image black, in training and in evaluation: what a policy is that has cameras and sees nothing.

    The blind control of a policy whose backbone reads images together with the instruction, and cannot do without.
    """

    class Config(ImageTransformConfig):
        """Blank images."""

        type: Literal["blank"]
        """Make images black, to see what a policy does without them."""

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="blank")

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, T, 3, H, W) -> zeros of the same size and dtype."""
        return images.new_zeros(images.shape)
