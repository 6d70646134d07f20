from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.specs import refuse_normalized_images
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import to_bytes
from ..randomness.per_sample import Draws


class RandomRotation(ImageTransform):
    """Random rotation of images about their center, in training only; before `normalize_image`.

    The angle is uniform within `degrees` either way, drawn once for all steps of one camera of one sample.
    Bilinear; the size stays.
    """

    class Config(ImageTransformConfig):
        type: Literal["random_rotation"]
        degrees: float = Field(default=5.0, gt=0.0, le=180.0)
        """Largest angle in degrees."""
        fill: float = Field(default=0.0, ge=0.0, le=1.0)
        """Brightness outside the image: 0 is black, 1 is white."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs unchanged; raise SpecError for images that are already normalized."""
        refuse_normalized_images(
            cls.cameras(config, inputs), "random_rotation", "fills with a brightness in [0, 1]"
        )
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="random_rotation", degrees=30.0)

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
        if not self.training:
            return images
        largest = math.radians(self.config.degrees)
        angles = draws.uniform(1, -largest, largest)[:, 0]
        return rotate_images(images, angles, self.config.fill)


def rotate_images(images: Tensor, angles: Tensor, fill: float) -> Tensor:
    """Rotate images (B, T, 3, H, W) counterclockwise by angles (B,) in radians."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2.0  # (W,), pixels from the center
    y = (torch.arange(height, device=images.device) - (height - 1) / 2.0)[:, None]  # (H, 1)
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    from_x, from_y = cosine * x - sine * y, sine * x + cosine * y  # (B, H, W)
    grid = torch.stack([from_x * (2.0 / width), from_y * (2.0 / height)], dim=-1)
    is_bytes = images.dtype == torch.uint8
    level = 255.0 * fill if is_bytes else fill
    values = (
        images.flatten(1, 2).float() - level
    )  # so that the fill appears outside, where the sampler returns 0
    values = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False).add_(
        level
    )
    return (to_bytes(values) if is_bytes else values.to(images.dtype)).reshape(images.shape)
