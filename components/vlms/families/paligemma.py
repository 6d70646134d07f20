"""PaliGemma: SigLIP, a linear projection and Gemma."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaModel

from ..base import EncodedFrames, VlmFamily
from ..sequence import AttentionPattern


class PaliGemma(VlmFamily):
    """PaliGemma (Beyer et al., 2024); all tokens of image and prompt see each other (prefix LM), as in pi0.

    With another language model in place of Gemma it is Eagle 2.5 (Chen et al., 2025), with causal attention
    as in GR00T N1.5.
    """

    model = PaliGemmaModel
    with_head = PaliGemmaForConditionalGeneration

    @property
    def attention(self) -> AttentionPattern:  # type: ignore[override]
        return "bidirectional" if self.text_sizes.model_type == "gemma" else "causal"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        side = self.sizes.vision_config.image_size
        if size != (side, side):
            raise self.size_error(size, (side, side))
        return self.divide(size, self.sizes.vision_config.patch_size, square=True)

    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        return EncodedFrames(model.get_image_features(images).pooler_output)
