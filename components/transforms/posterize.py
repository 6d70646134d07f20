from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import refuse_normalized_images
from ..images.transform import ImageTransformConfig, OccasionalTransform


class Posterize(OccasionalTransform):
    """Random reduction of each channel to its highest bits, in training; before `normalize_image`."""

    class Config(ImageTransformConfig):
        type: Literal["posterize"]
        bits: int = Field(default=4, ge=1, le=8)
        """Number of bits kept of the eight of each channel."""
        p: float = Field(default=0.5, ge=0.0, le=1.0)
        """Probability per camera of a sample; 1 means always, also in evaluation, less means in training only."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs unchanged; raise SpecError for images that are already normalized."""
        refuse_normalized_images(cls.cameras(config, inputs), "posterize", "counts levels in [0, 1]")
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="posterize")

    def change(self, images: Tensor) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
        bits, levels = self.config.bits, 1 << self.config.bits
        if images.dtype == torch.uint8:
            return images.bitwise_and((levels - 1) << (8 - bits))
        kept: Tensor = (images * levels).floor_().clamp_(0, levels - 1).div_(levels)
        return kept
