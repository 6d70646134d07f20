"""SmolVLM: SigLIP, pixel shuffle, a linear projection and SmolLM2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import SmolVLMForConditionalGeneration, SmolVLMModel

from ..base import EncodedFrames, VlmFamily


class SmolVlm(VlmFamily):
    """SmolVLM and SmolVLM2 (Marafioti et al., 2025); all tokens of images and prompt see each other.

    As in SmolVLA, an image is one frame, without the tiles and their tokens of the chat model.
    """

    model = SmolVLMModel
    with_head = SmolVLMForConditionalGeneration
    attention = "bidirectional"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.divide(size, self.sizes.vision_config.patch_size * self.sizes.scale_factor, square=True)

    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        tower, patch = model.vision_model, self.sizes.vision_config.patch_size
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        whole = torch.ones(len(images), rows, columns, dtype=torch.bool, device=images.device)
        patches = tower.embeddings(pixel_values=images, patch_attention_mask=whole)
        hidden = tower.encoder(inputs_embeds=patches).last_hidden_state
        return EncodedFrames(model.connector(tower.post_layernorm(hidden)))

    def text(self, model: Any) -> nn.Module:
        found: nn.Module = model.text_model
        return found
