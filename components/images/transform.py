"""Base classes of transforms of images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Batch, Facts, Transform
from ..randomness.per_sample import Draws
from .specs import with_size


class ImageTransformConfig(PartConfig):
    """Options of every image transform."""

    keys: list[str] | None = Field(default=None, min_length=1)
    """Images to change, such as `observation.images.wrist`; by default all."""


class ImageTransform(Transform):
    """Transform of one camera at a time, with the same random numbers for all its steps."""

    idempotent: ClassVar[bool] = False
    """True if it leaves its own result as it is and draws no numbers, so that frames may be stored after it."""

    def __init__(self, config: Any, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self.keys: Sequence[str] = tuple(self.cameras(config, inputs))

    @staticmethod
    def cameras(config: Any, inputs: Specs) -> dict[str, Spec]:
        """Return the specs of the images to change; raise SpecError for an unknown key."""
        found = {key: spec for key, spec in inputs.items() if spec.kind is Kind.IMAGE}
        for position, key in enumerate(config.keys or ()):
            if key not in found:
                raise SpecError(
                    f"`{key}` is not an image",
                    field=f"keys.{position}",
                    label="not an image",
                    help=f"images are: {', '.join(found) or 'none'}",
                )
        return found if config.keys is None else {key: found[key] for key in config.keys}

    @classmethod
    def resized(cls, config: Any, inputs: Specs, size: tuple[int, int], why: str) -> dict[str, Spec]:
        """Return the specs of all inputs, with the images at a new height and width."""
        return {
            **inputs,
            **{key: with_size(spec, size, why) for key, spec in cls.cameras(config, inputs).items()},
        }

    @classmethod
    def specs(cls, config: Any, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        cls.cameras(config, inputs)
        return dict(inputs)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with changed images."""
        images = {key: batch[key] for key in self.keys if key in batch}
        return {**batch, **{key: self.apply_to(x, self.draws(batch, x, key)) for key, x in images.items()}}

    @abstractmethod
    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return changed images (B, T, 3, H, W) of one camera, with random numbers from `draws`."""


class OccasionalTransform(ImageTransform):
    """Transform of each camera of each sample with probability `p` in training, or always with a `p` of 1."""

    Config: ClassVar[type[PartConfig]]
    """Config with an option `p`."""

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
        if self.config.p == 1.0:
            return self.change(images)
        if not self.training:
            return images
        hit = draws.uniform(1) < self.config.p
        return torch.where(hit[..., None, None, None], self.change(images), images)

    @abstractmethod
    def change(self, images: Tensor) -> Tensor:
        """Return changed images (B, T, 3, H, W) of the same size and dtype."""
