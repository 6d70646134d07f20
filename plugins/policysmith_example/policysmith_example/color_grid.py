"""The backbone `color_grid`."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from policysmith.components import Backbone, BackboneConfig, Batch, Count, Facts, Feature, Kind, Spec, Specs


class ColorGrid(Backbone):
    """Mean colors of the cells of a grid laid over each image."""

    kind = Kind.IMAGE

    class Config(BackboneConfig):
        type: Literal["color_grid"]
        cells: Count = 4
        """Number of cells along each side."""

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the spec of `pooled` (B, images * 3 * cells^2)."""
        images = sum(spec.dims[1] for spec in cls.reads(config, inputs).values())
        size = images * 3 * config.cells**2
        return {"pooled": Spec(Kind.POOLED, ("B", size), f"{images} images x 3 x {config.cells}^2 cells")}

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="color_grid", cells=2)

    def forward(self, observations: Batch, outputs: frozenset[str]) -> dict[str, Feature]:
        """Return the colors of all images (B, T, 3, H, W), side by side."""
        grids = []
        for key in self.keys:
            images = observations[key]
            cells = F.adaptive_avg_pool2d(images.flatten(0, 1), self.config.cells)
            grids.append(cells.reshape(len(images), -1))
        return {"pooled": Feature(torch.cat(grids, -1))}
