"""Dependencies of a composed policy's backbones, for caching their features and for evaluation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

from ...components.base import Transform
from ...schemas.specs import Kind
from ..wiring.parts import Parts
from ..wiring.solve import Wiring, keys_before_transforms, required_keys


@dataclass(frozen=True)
class Dependencies:
    """Keys of a batch that backbones and transforms read."""

    parts: Parts
    wiring: Wiring

    @property
    def images(self) -> set[str]:
        """Keys of the images that the collator returns."""
        return {key for key, spec in self.wiring.collated.items() if spec.kind is Kind.IMAGE}

    def outputs_of(self, backbone: str) -> list[str]:
        """Return the outputs of a backbone that necks and head read."""
        return list(self.wiring.outputs[backbone])

    def before_transforms(self, backbones: Sequence[str]) -> list[set[str]]:
        """Return the keys before each transform that these backbones or the transform itself need."""
        stages = keys_before_transforms(self.parts, self.wiring, backbones)
        return [
            keys | {*cast(type[Transform], site.part).needs(site.config, self.wiring.into(index))}
            for index, (keys, site) in enumerate(zip(stages, self.parts.transforms, strict=False))
        ]

    def read_by_others(self, backbones: Collection[str]) -> set[str]:
        """Return the keys of the collator that anything but these backbones reads."""
        return required_keys(self.parts, self.wiring, without=backbones)

    def read_only_by(self, backbones: Sequence[str]) -> set[str]:
        """Return the keys of the collator that only these backbones read."""
        return keys_before_transforms(self.parts, self.wiring, backbones)[0] - self.read_by_others(backbones)


__all__ = ["Dependencies"]
