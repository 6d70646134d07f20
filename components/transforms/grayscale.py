"""Images without colour."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import refuse_normalised
from ..images.transform import ImageTransformConfig, OccasionalTransform
from ..pixels import grey, to_bytes


class Grayscale(OccasionalTransform):
    """Takes the colour out of images, always or of some in training; they keep three, equal, channels."""

    class Config(ImageTransformConfig):
        """Images without colour."""

        type: Literal["grayscale"]
        """Turn images grey, always or at random while training; before `normalize_image`."""
        p: float = Field(default=1.0, ge=0.0, le=1.0)
        """Probability, for each camera of a sample; 1 means always and in evaluation too, less in training only."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs as they are; raises SpecError for images that are normalised already."""
        refuse_normalised(cls.cameras(config, inputs), "grayscale", "weighs colours in [0, 1]")
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="grayscale", p=0.5)

    def change(self, images: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> the same size and dtype."""
        values = grey(images)
        brightness = to_bytes(values) if images.dtype == torch.uint8 else values
        return brightness.expand(images.shape).contiguous()
