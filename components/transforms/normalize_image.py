from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Range, Spec, Specs
from ..base import Facts
from ..images.fusion import FusedStage, Plan
from ..images.specs import IMAGE_STATISTICS
from ..images.transform import ImageTransform, ImageTransformConfig
from ..randomness.per_sample import Draws

Rgb = Annotated[list[float], Field(min_length=3, max_length=3)]
PositiveRgb = Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=3, max_length=3)]


class NormalizeImage(ImageTransform):
    """Normalization of images to `(x - mean) / std`, for x in [0, 1].

    Bytes are divided by 255; floats are taken as values in [0, 1].
    """

    stage = FusedStage.NORMALIZE

    class Config(ImageTransformConfig):
        type: Literal["normalize_image"]
        stats: Literal["imagenet", "clip", "half", "zero_one"] = "imagenet"
        """Statistics: `imagenet` and `clip` of these datasets, `half` maps to [-1, 1], `zero_one` to [0, 1]."""
        mean: Rgb | None = None
        """Mean of each channel, for images in [0, 1], instead of `stats`."""
        std: PositiveRgb | None = None
        """Standard deviation of each channel, for images in [0, 1], instead of `stats`."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs, with normalized images; raise SpecError for `mean` or `std` alone."""
        if (config.mean is None) != (config.std is None):
            given, missing = ("mean", "std") if config.std is None else ("std", "mean")
            raise SpecError(
                f"`{given}` is given without `{missing}`",
                field=given,
                label=f"`{missing}` is missing",
                help="set both",
            )
        images = cls.cameras(config, inputs)
        for key, spec in images.items():
            if spec.range is Range.NORMALIZED:
                raise SpecError(
                    f"`{key}` is already normalized",
                    source=key,
                    trait="range",
                    label="normalized twice",
                    help="remove one of the two, or assign each separate images under `keys`",
                )
        mean, std = _constants(config)
        becomes = Range.UNIT if (mean, std) == IMAGE_STATISTICS["zero_one"] else Range.NORMALIZED
        taken = (tuple(mean), tuple(std))
        return {
            **inputs,
            **{key: replace(s, range=becomes, normalized_by=taken) for key, s in images.items()},
        }

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="normalize_image")

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Map images (B, T, 3, H, W), bytes or floats in [0, 1], to normalized floats."""
        mean, std = _constants(self.config)
        unit = 255.0 if images.dtype == torch.uint8 else 1.0
        dtype = images.dtype if images.is_floating_point() else torch.float32
        out = images.to(dtype, copy=True)
        for channel in range(3):
            out[:, :, channel].sub_(mean[channel] * unit).div_(std[channel] * unit)
        return out

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Normalize the colors."""
        plan.mean, plan.std = _constants(self.config)


def _constants(config: NormalizeImage.Config) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    return IMAGE_STATISTICS[config.stats]
