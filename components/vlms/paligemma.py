"""PaliGemma: SigLIP, a linear projection and Gemma."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaModel

from .base import Family, Seen
from .sequence import Attention


class PaliGemma(Family):
    """PaliGemma (Beyer et al., 2024). All tokens of image and prompt see each other (prefix LM), as in pi0.

    With another language model in place of Gemma it is Eagle 2.5 (Chen et al., 2025) as GR00T N1.5 reads it, causally.
    """

    model = PaliGemmaModel
    with_head = PaliGemmaForConditionalGeneration

    @property
    def attention(self) -> Attention:  # type: ignore[override]
        return "bidirectional" if self.text_sizes.model_type == "gemma" else "causal"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        side = self.sizes.vision_config.image_size
        if size != (side, side):
            raise self.expected(size, (side, side))
        return self.divided(size, self.sizes.vision_config.patch_size, square=True)

    def see(self, model: Any, images: Tensor) -> Seen:
        return Seen(model.get_image_features(images).pooler_output)
