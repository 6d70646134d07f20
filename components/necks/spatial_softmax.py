from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import Count, NeckConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Facts, Feature, Neck
from ..layers.sequences import single_feature


class SpatialSoftmax(Neck):
    """Keypoints of feature maps: the expected position of each map (Finn et al., 2016).

        p = softmax over places of (map / temperature)        keypoint = (sum p x, sum p y)

    Places run from -1 to 1, left to right and top to bottom. The maps are the channels of the tokens, or K
    mixtures of them. Publishes one token per frame, `tokens` (B, F, 2 K) with K pairs (x, y), and their
    concatenation, `pooled` (B, F * 2 K). The keypoints of a frame without a valid place lie in the middle,
    and its token is masked.
    """

    roles: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"reads": (Kind.TOKENS,)}

    class Config(NeckConfig):
        type: Literal["spatial_softmax"]
        keypoints: Count | None = 32
        """Number of keypoints, each from a mixture of the channels (a 1x1 convolution); null for one per channel."""
        temperature: Literal["fixed", "learned"] = "fixed"
        """Temperature of the softmax: 1, or learned from an initial value of 1."""
        width: Count | None = None
        """Size of a layer with ReLU over the keypoints of each frame; by default none."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._key, spec = single_feature(config, inputs, self.roles["reads"])
        assert spec.grid is not None
        self._grid = spec.grid
        count = config.keypoints or spec.width
        self.maps = nn.Linear(spec.width, count) if config.keypoints else nn.Identity()
        self.log_temperature = nn.Parameter(torch.zeros(())) if config.temperature == "learned" else None
        self.project: nn.Module = nn.Identity()
        if config.width is not None:
            self.project = nn.Sequential(nn.Linear(2 * count, config.width), nn.ReLU())

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError for tokens that are not places of feature maps."""
        key, spec = single_feature(config, inputs, cls.roles["reads"])
        if spec.grid is None:
            raise SpecError(
                f"`{key}` is {spec}, whose tokens are not places of feature maps",
                field="reads.0",
                label="has no places",
                help=f"read a backbone that publishes a map, such as `{{type: timm, name: resnet18}}` in place of "
                f"`{key.partition('.')[0]}`, or pool its tokens by `{{type: attention_pool}}`",
            )
        frames, count = spec.grid[0], config.keypoints or spec.width
        width = config.width or 2 * count
        why = f"{frames} frames x " + (f"{count} keypoints" if config.width is None else f"width {width}")
        return {
            "pooled": Spec(Kind.POOLED, ("B", frames * width), why),
            "tokens": Spec(Kind.TOKENS, ("B", frames, width), why),
        }

    @classmethod
    def example(cls) -> Config:
        return cls.Config(
            type="spatial_softmax", reads=["vision.tokens"], keypoints=3, temperature="learned", width=5
        )

    def forward(self, features: Mapping[str, Feature], outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, F * D) and `tokens` (B, F, D)."""
        values, mask = features[self._key].values, features[self._key].mask
        dtype = next((parameter.dtype for parameter in self.parameters()), values.dtype)
        maps = self.maps(values.to(dtype)).unflatten(1, (self._grid[0], -1)).float()  # (B, F, h * w, K)
        if self.log_temperature is not None:
            maps = maps / self.log_temperature.float().exp()
        valid = None if mask is None else mask.unflatten(1, (self._grid[0], -1))[..., None]
        if valid is not None:
            maps = maps.masked_fill(~valid, torch.finfo(maps.dtype).min)
        share = maps.softmax(dim=2)
        if valid is not None:
            share = share.masked_fill(~valid, 0.0)
        places = self._places(maps.device)
        points = (
            (share[..., None] * places[:, None]).sum(2).flatten(2)
        )  # (B, F, 2 K), float32 under autocast too
        tokens = self.project(points.to(dtype))
        seen = None if valid is None else valid.any(dim=2)[..., 0]
        made = {"pooled": Feature(tokens.flatten(1)), "tokens": Feature(tokens, seen)}
        return {name: made[name] for name in made if name in outputs}

    def _places(self, device: torch.device) -> Tensor:
        """Return coordinates (h * w, 2) of the places, row by row, with x and y from -1 to 1."""
        _, height, width = self._grid
        x = torch.linspace(-1.0, 1.0, width, device=device).expand(height, width)
        y = torch.linspace(-1.0, 1.0, height, device=device)[:, None].expand(height, width)
        return torch.stack([x, y], dim=-1).flatten(0, 1)
