"""A transform of a user's own, which does not say that it changes values."""

from __future__ import annotations

from typing import Any, Literal

from policysmith.components.base import Batch, Facts, Transform
from policysmith.components.registry import TRANSFORMS
from policysmith.schemas.part import PartConfig
from policysmith.schemas.specs import Spec, Specs


@TRANSFORMS.register
class Doubled(Transform):
    """Doubles actions."""

    class Config(PartConfig):
        """Doubled actions."""

        type: Literal["doubled"]
        """Double the actions."""
        needs_images: bool = False
        """Fail without the camera."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        return dict(inputs)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="doubled")

    def forward(self, batch: Batch) -> dict[str, Any]:
        if self.config.needs_images:
            batch["observation.images.corner2"]
        return {**batch, **({"action": 2.0 * batch["action"]} if "action" in batch else {})}

    def inverse(self, batch: Batch) -> dict[str, Any]:
        return {**batch, "action": 0.5 * batch["action"]}
