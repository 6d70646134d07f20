from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.fusion import FusedStage, Plan
from ..images.specs import ImageSize, height_width
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import gather_pixels
from ..randomness.per_sample import Draws

Offset = Annotated[int, Field(ge=0)]


class Crop(ImageTransform):
    """Crop of every image: at random in training and at the center in evaluation, or at a fixed place.

    All steps of one camera of one sample are cropped at the same place.
    """

    stage = FusedStage.CUT

    class Config(ImageTransformConfig):
        type: Literal["crop"]
        size: ImageSize
        """Size in pixels: one number for a square, or `[height, width]`."""
        corner: Annotated[list[Offset], Field(min_length=2, max_length=2)] | None = None
        """Fixed place, `[top, left]` in pixels, also in training; for a camera that sees more than the work area."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the inputs with cropped images; raise SpecError for a window larger than the image."""
        height, width = height_width(config.size)
        for key, spec in cls.cameras(config, inputs).items():
            _, _, _, full_height, full_width = spec.dims
            assert isinstance(full_height, int)
            assert isinstance(full_width, int)
            if height > full_height or width > full_width:
                raise SpecError(
                    f"a window of {height} x {width} is larger than `{key}`, which is {full_height} x {full_width}",
                    field="size",
                    source=key,
                    label=f"the image is {full_height} x {full_width}",
                    help="choose a smaller `size`, or resize the images first",
                )
            top, left = config.corner or (0, 0)
            if top + height > full_height or left + width > full_width:
                raise SpecError(
                    f"a window of {height} x {width} at [{top}, {left}] reaches outside `{key}`",
                    field="corner",
                    source=key,
                    label=f"the image is {full_height} x {full_width}",
                    help=f"choose a corner up to [{full_height - height}, {full_width - width}]",
                )
        return cls.resized(config, inputs, (height, width), f"cropped to {height} x {width}")

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="crop", size=[12, 10])

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Map images (B, T, 3, H, W) to (B, T, 3, h, w)."""
        height, width = height_width(self.config.size)
        spare = (images.shape[-2] - height, images.shape[-1] - width)
        if self.config.corner is not None or not self.training:
            top, left = self.config.corner or (spare[0] // 2, spare[1] // 2)
            return images[..., top : top + height, left : left + width].contiguous()
        device, corners = images.device, self._draw(draws, spare)
        rows = corners[:, :1] + torch.arange(height, device=device)  # (B, h)
        columns = corners[:, 1:] + torch.arange(width, device=device)  # (B, w)
        return gather_pixels(images, rows, columns)

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Crop the current window."""
        height, width = height_width(self.config.size)
        if self.config.corner is not None:
            corner = [torch.full_like(plan.corners[:, :1], side) for side in self.config.corner]
            plan.corners = plan.corners + torch.cat(corner, dim=1)
        else:
            spare = (plan.window[0] - height, plan.window[1] - width)
            plan.corners = plan.corners + self._draw(draws, spare)
        plan.window = plan.size = (height, width)

    @staticmethod
    def _draw(draws: Draws, spare: tuple[int, int]) -> Tensor:
        """Return tops and lefts (B, 2)."""
        return torch.cat([draws.integers(0, most + 1, 1) for most in spare], dim=1)
