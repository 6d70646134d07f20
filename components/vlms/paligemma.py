"""PaliGemma: SigLIP, a linear projection and Gemma."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaModel

from .family import Family, Seen


class PaliGemma(Family):
    """PaliGemma (Beyer et al., 2024). All tokens of image and prompt see each other (prefix LM), as in pi0."""

    model = PaliGemmaModel
    with_head = PaliGemmaForConditionalGeneration
    attention = "bidirectional"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        side = self.sizes.vision_config.image_size
        if size != (side, side):
            raise self.expected(size, (side, side))
        return self.divided(size, self.sizes.vision_config.patch_size, square=True)

    def see(self, model: Any, images: Tensor) -> Seen:
        return Seen(model.get_image_features(images).pooler_output)
