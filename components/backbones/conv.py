from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import MOST_LAYERS, BackboneConfig, Count
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..images.specs import fold_frames, frame_size, frames, image_features, unfold_frames

_KERNEL = 3


class Conv(Backbone):
    """A few strided convolutions, each of which halves the image, as tokens for a transformer.

        x = relu(norm(convolution(x)))        tokens = W x

    Early convolutions in place of patches make transformers easier to train (Xiao et al., 2021). With the
    defaults it is the image tokenizer of Octo (2024), without its weight standardization. `tokens` (B, T * V
    * N, D) holds the places of the last map, row by row, of T steps of V cameras, and `pooled` (B, T * V * D)
    their mean.
    """

    kind = Kind.IMAGE

    class Config(BackboneConfig):
        type: Literal["conv"]
        channels: list[Count] = Field(
            max_length=MOST_LAYERS, default_factory=lambda: [32, 96, 192, 384], min_length=1
        )
        """Channels of the convolutions; each halves the image, so that four cover patches of 16 pixels."""
        groups: Count = 32
        """Groups of the norms; they share the channels."""
        width: Count = 512
        """Size D of a token."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._cameras = self.reads(config, inputs)
        self._frames = frames(self._cameras)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, _KERNEL, stride=2, padding=_KERNEL // 2),
                    nn.GroupNorm(config.groups, after),
                    nn.ReLU(),
                )
                for before, after in itertools.pairwise([3, *config.channels])
            )
        )
        self.out = nn.Linear(config.channels[-1], config.width)

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if the groups do not divide the channels."""
        for position, channels in enumerate(config.channels):
            if channels % config.groups:
                raise SpecError(
                    f"{channels} channels cannot be shared by {config.groups} groups",
                    field=f"channels.{position}",
                    label=f"not a multiple of {config.groups}",
                    help=f"choose channels that are multiples of `groups`, {config.groups}",
                )
        cameras = cls.reads(config, inputs)
        height, width = frame_size(cameras)
        for _ in config.channels:
            height, width = -(-height // 2), -(-width // 2)
        return image_features(cameras, height * width, config.width, grid=(height, width))

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="conv", channels=[4, 8], groups=2, width=8)

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * V * D) and `tokens` (B, T * V * N, D) of normalized float images."""
        images = fold_frames(observations, self._cameras, self.out.weight.dtype)  # (B * T * V, 3, H, W)
        tokens: Tensor = self.out(self.layers(images).flatten(2).transpose(1, 2))
        pooled = tokens.mean(1) if "pooled" in outputs else None
        return unfold_frames(pooled, tokens if "tokens" in outputs else None, self._frames)
