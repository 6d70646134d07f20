from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import PartConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Batch, Facts
from ..images.transform import ImageTransform
from ..randomness.per_sample import Draws
from ..vectors.specs import Constants, changed_spec, find_vector, refuse_normalized_vector, resolve_dims


class Flip(ImageTransform):
    """Random mirroring of all images of a sample in training; with a `p` of 1 always, also in evaluation.

    A mirrored scene requires mirrored actions, and only the user knows which dimensions change sign. Without
    `negate`, states and actions stay unchanged, which contradicts the images if left and right matter. Texts
    stay unchanged in any case. With `negate`, it must precede `normalize`; if only some samples are flipped,
    the statistics remain those of unflipped ones. With a `p` of 1, the inverse mirrors actions back.
    """

    class Config(PartConfig):
        type: Literal["flip"]
        direction: Literal["horizontal", "vertical"] = "horizontal"
        """`horizontal` swaps left and right, `vertical` top and bottom."""
        p: float = Field(default=0.5, ge=0.0, le=1.0)
        """Probability for all cameras of a sample together; 1 means always, also in evaluation."""
        negate: dict[str, list[int]] = Field(default_factory=dict)
        """Dimensions whose sign changes with the images, such as `{action: [1], observation.state: [1]}`; -1 is the last."""
        keys: list[str] | None = Field(default=None, min_length=1)
        """Images to mirror; by default all."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._signs = {
            key: Constants(sign=[-1.0 if dim in dims else 1.0 for dim in range(inputs[key].width)])
            for key, dims in _negated(config, inputs).items()
        }

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return all inputs; raise SpecError for dimensions or images that do not allow `negate`."""
        cameras = cls.cameras(config, inputs)
        negated = _negated(config, inputs)
        left_out = [k for k, spec in inputs.items() if spec.kind is Kind.IMAGE and k not in cameras]
        if negated and left_out:
            raise SpecError(
                f"states and actions are mirrored, but `{left_out[0]}` is not",
                field="keys",
                label="not every image",
                help="leave `keys` out, or `negate`",
            )
        for key in negated:
            refuse_normalized_vector(key, inputs[key], "flip", "changes signs in the robot's units")
        if config.p < 1.0:
            return dict(inputs)
        return {**inputs, **{key: changed_spec(inputs[key], "mirrored") for key in negated}}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="flip")

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return a batch in which each sample has all images, states and actions mirrored, or none."""
        keys = [key for key in (*self.keys, *self._signs) if key in batch]
        if not keys or not (self.training or self.config.p == 1.0):
            return dict(batch)
        first = batch[keys[0]]
        draws = self.draws(batch, first)
        hit = draws.uniform(1)[:, 0] < self.config.p
        flipped = {key: self._flip(batch[key], hit, draws) for key in self.keys if key in batch}
        mirrored = {key: self._mirror(batch[key], key, hit) for key in self._signs if key in batch}
        return {**batch, **flipped, **mirrored}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with states and actions mirrored back, if all were mirrored."""
        if self.config.p < 1.0:
            return dict(batch)
        signs = {key: signs for key, signs in self._signs.items() if key in batch}
        return {
            **batch,
            **{key: batch[key] * held.on(batch[key].device)["sign"] for key, held in signs.items()},
        }

    def apply_to(self, images: Tensor, draws: Draws) -> Tensor:
        """Return mirrored images (B, T, 3, H, W)."""
        return images.flip(-1 if self.config.direction == "horizontal" else -2)

    def _flip(self, images: Tensor, hit: Tensor, draws: Draws) -> Tensor:
        return torch.where(hit[:, None, None, None, None], self.apply_to(images, draws), images)

    def _mirror(self, values: Tensor, key: str, hit: Tensor) -> Tensor:
        return torch.where(hit[:, None, None], values * self._signs[key].on(values.device)["sign"], values)


def _negated(config: Flip.Config, inputs: Specs) -> dict[str, list[int]]:
    """Return the dimensions that change sign by key, counted from 0."""
    return {
        key: resolve_dims(dims, find_vector(key, inputs, f"negate.{key}").width, key, f"negate.{key}")
        for key, dims in config.negate.items()
    }
