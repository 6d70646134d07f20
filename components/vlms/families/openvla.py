"""OpenVLA: DINOv2 and SigLIP side by side, a three-layer projection and Llama."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from ....schemas.errors import WeightsError
from ..base import EncodedFrames, VlmFamily

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OpenVla(VlmFamily):
    """Vision-language model of OpenVLA (Kim et al., 2024), a Prismatic model (Karamcheti et al., 2024).

    Both towers read images in [-1, 1], DINOv2 after a change to ImageNet's mean and deviation. Their features
    are the patches before the last layer, which is not built.
    """

    attention = "causal"

    @classmethod
    def parse(cls, held: dict[str, Any]) -> Any:
        text = LlamaConfig.from_dict({k: v for k, v in held["text_config"].items() if k != "model_type"})
        return SimpleNamespace(**{**held, "text_config": text})

    def build(self) -> nn.Module:
        return _Prismatic(self.sizes.vision_config, self.text_sizes)

    def loadable(self, model: Any, head: nn.Linear | None) -> PreTrainedModel:
        raise WeightsError(
            "weights of OpenVLA cannot be loaded; name it by `architecture` to train from scratch"
        )

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        vision = self.sizes.vision_config
        side = vision["image_size"]
        if size != (side, side):
            raise self.size_error(size, (side, side))
        return self.divide(size, vision["towers"][0]["patch_size"], square=True)

    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        return EncodedFrames(model.encode_frames(images))


class _Prismatic(nn.Module):
    """Two towers, the projection of both, and the language model; named as in OpenVLA."""

    def __init__(self, vision: dict[str, Any], text: LlamaConfig) -> None:
        super().__init__()
        first, second = vision["towers"]
        wide = first["width"] + second["width"]
        self.vision_backbone = nn.Module()
        self.vision_backbone.featurizer = _tower(first, vision["image_size"])
        self.vision_backbone.fused_featurizer = _tower(second, vision["image_size"])
        self.projector = nn.Sequential(
            nn.Linear(wide, 4 * wide),
            nn.GELU(),
            nn.Linear(4 * wide, text.hidden_size),
            nn.GELU(),
            nn.Linear(text.hidden_size, text.hidden_size),
        )
        self.language_model = LlamaModel(text)

    def encode_frames(self, images: Tensor) -> Tensor:
        """Encode images (F, 3, H, W) in [-1, 1] to embeddings (F, N, D)."""
        mean, std = (
            torch.stack([images.new_full((1, 1), value) for value in values]) for values in (_MEAN, _STD)
        )  # (3, 1, 1)
        towers: Any = self.vision_backbone
        seen = [
            _patches(towers.featurizer, ((images + 1) / 2 - mean) / std),
            _patches(towers.fused_featurizer, images),
        ]
        projected: Tensor = self.projector(torch.cat(seen, dim=2))
        return projected


def _tower(sizes: dict[str, Any], side: int) -> nn.Module:
    """Build a vision transformer of timm without its last layer and head."""
    tower: nn.Module = timm.create_model(
        sizes["name"],
        img_size=side,
        patch_size=sizes["patch_size"],
        embed_dim=sizes["width"],
        depth=sizes["depth"] - 1,
        num_heads=sizes["heads"],
        num_classes=0,
        global_pool="",
    )
    tower.norm = nn.Identity()
    return tower


def _patches(tower: Any, images: Tensor) -> Tensor:
    """Return patches (F, N, D) after the last remaining layer."""
    (patches,) = tower.get_intermediate_layers(images, n=1)
    assert isinstance(patches, Tensor)
    return patches
