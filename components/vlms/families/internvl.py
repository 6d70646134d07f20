"""InternVL: a vision transformer, pixel shuffle, a two-layer projection and a language model."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import InternVLForConditionalGeneration, InternVLModel

from ..base import EncodedFrames, VlmFamily


class InternVl(VlmFamily):
    """InternVL3 (Zhu et al., 2025), and Eagle (Li et al., 2025) of GR00T, with SigLIP as its vision tower."""

    model = InternVLModel
    with_head = InternVLForConditionalGeneration
    attention = "causal"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        vision = self.sizes.vision_config
        wanted, patch = _pair(vision.image_size), _pair(vision.patch_size)[0]
        if vision.model_type != "internvl_vision" and size != wanted:  # its own tower interpolates positions
            raise self.size_error(size, wanted)
        return self.divide(size, round(patch / self.sizes.downsample_ratio), square=True)

    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        return EncodedFrames(model.get_image_features(pixel_values=images).pooler_output)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
