from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import refuse_normalized_images
from ..images.transform import ImageTransformConfig, OccasionalTransform
from ..pixels import luma, to_bytes


class Grayscale(OccasionalTransform):
    """Grayscale images with three equal channels, always or at random in training."""

    class Config(ImageTransformConfig):
        type: Literal["grayscale"]
        p: float = Field(default=1.0, ge=0.0, le=1.0)
        """Probability per camera of a sample; 1 means always, also in evaluation, less means in training only."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs unchanged; raise SpecError for images that are already normalized."""
        refuse_normalized_images(cls.cameras(config, inputs), "grayscale", "weights colors in [0, 1]")
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="grayscale", p=0.5)

    def change(self, images: Tensor) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
        values = luma(images)
        brightness = to_bytes(values) if images.dtype == torch.uint8 else values
        return brightness.expand(images.shape).contiguous()
