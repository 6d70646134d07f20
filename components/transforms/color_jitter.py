from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.specs import Spec, Specs
from ..base import Facts
from ..images.fusion import FusedStage, Plan
from ..images.specs import refuse_normalized_images
from ..images.transform import ImageTransform, ImageTransformConfig
from ..pixels import luma, shift_hue
from ..randomness.per_sample import Draws

Strength = Annotated[float, Field(ge=0.0)]


class ColorJitter(ImageTransform):
    """Random changes of brightness, contrast, saturation and hue, in that order, in training only.

    Factors are uniform from `1 - strength` (at least 0) to `1 + strength`, drawn once for all steps of one
    camera of one sample. Works on bytes or on floats in [0, 1], so it must precede `normalize_image`.
    """

    stage = FusedStage.COLOR

    class Config(ImageTransformConfig):
        type: Literal["color_jitter"]
        brightness: Strength = 0.3
        """Strength of the change in brightness."""
        contrast: Strength = 0.3
        """Strength of the change in contrast."""
        saturation: Strength = 0.3
        """Strength of the change in saturation."""
        hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
        """Largest shift of the hue, as a fraction of the color circle."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs unchanged; raise SpecError for images that are already normalized."""
        refuse_normalized_images(cls.cameras(config, inputs), "color_jitter", "changes colors in [0, 1]")
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="color_jitter")

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
        if not self.training:
            return images
        config, dtype = self.config, images.dtype
        values = images.float() / 255.0 if dtype == torch.uint8 else images.float()
        brightness, contrast, saturation, turn = self._draw(draws).T[..., None, None, None, None]
        if config.brightness > 0.0:
            values = (values * brightness).clamp_(0.0, 1.0)
        if config.contrast > 0.0:
            values = _blend(values, luma(values).mean(dim=(2, 3, 4), keepdim=True), contrast)
        if config.saturation > 0.0:
            values = _blend(values, luma(values), saturation)
        if config.hue > 0.0:
            values = shift_hue(values, turn[:, 0])
        return values.mul_(255.0).round_().to(dtype) if dtype == torch.uint8 else values.to(dtype)

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Change the colors."""
        plan.colors = self._draw(draws)

    def _draw(self, draws: Draws) -> Tensor:
        """Return factors of brightness, contrast and saturation, and shifts of the hue in circles (B, 4)."""
        config = self.config
        strengths = (config.brightness, config.contrast, config.saturation)
        ranges = [(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
        numbers = zip(draws.uniform(4).unbind(1), [*ranges, (-config.hue, config.hue)], strict=True)
        return torch.stack([number * (most - least) + least for number, (least, most) in numbers], dim=1)


def _blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return (base + (images - base) * factor).clamp_(0.0, 1.0)
