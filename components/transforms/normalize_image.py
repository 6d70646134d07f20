"""Bring images to the range that a vision backbone expects."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.specs import Range, Spec, Specs
from ..base import Facts
from ..images.fusion import Plan, Stage
from ..images.specs import STATISTICS
from ..images.transform import ImageTransform, ImageTransformConfig
from ..randomness.per_sample import Draws

Rgb = Annotated[list[float], Field(min_length=3, max_length=3)]
PositiveRgb = Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=3, max_length=3)]


class NormalizeImage(ImageTransform):
    """Maps images to `(x - mean) / std`, where x is in [0, 1]: bytes are divided by 255, floats are taken as they are."""

    stage = Stage.NORMALISE

    class Config(ImageTransformConfig):
        """Bring images to the range that a vision backbone expects."""

        type: Literal["normalize_image"]
        """Turn images into normalised floats."""
        stats: Literal["imagenet", "clip", "half", "zero_one"] = "imagenet"
        """`imagenet` and `clip` are the means and deviations of these data, `half` maps to [-1, 1], `zero_one` to [0, 1]."""
        mean: Rgb | None = None
        """Mean of each channel, for images in [0, 1], instead of `stats`."""
        std: PositiveRgb | None = None
        """Standard deviation of each channel, for images in [0, 1], instead of `stats`."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """All inputs, with the range of the images; raises SpecError for a mean without a deviation, and done twice."""
        if (config.mean is None) != (config.std is None):
            given, missing = ("mean", "std") if config.std is None else ("std", "mean")
            raise SpecError(
                f"`{given}` is given without `{missing}`",
                field=given,
                label=f"`{missing}` is missing",
                help="give both",
            )
        images = cls.cameras(config, inputs)
        for key, spec in images.items():
            if spec.range is Range.NORMALISED:
                raise SpecError(
                    f"`{key}` is normalised already",
                    source=key,
                    trait="range",
                    label="again",
                    help="remove one of the two, or give each its own images under `keys`",
                )
        mean, std = _constants(config)
        becomes = Range.UNIT if (mean, std) == STATISTICS["zero_one"] else Range.NORMALISED
        taken = (tuple(mean), tuple(std))
        return {
            **inputs,
            **{key: replace(s, range=becomes, normalised_by=taken) for key, s in images.items()},
        }

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="normalize_image")

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, T, 3, H, W) bytes, or floats in [0, 1], -> normalised floats."""
        mean, std = _constants(self.config)
        unit = 255.0 if images.dtype == torch.uint8 else 1.0
        dtype = images.dtype if images.is_floating_point() else torch.float32
        out = images.to(dtype, copy=True)
        for channel in range(3):
            out[:, :, channel].sub_(mean[channel] * unit).div_(std[channel] * unit)
        return out

    def plan(self, plan: Plan, draws: Draws) -> None:
        """Normalise the colours."""
        plan.mean, plan.std = _constants(self.config)


def _constants(config: NormalizeImage.Config) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    return STATISTICS[config.stats]
