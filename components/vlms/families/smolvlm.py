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
        places = _places(tower.embeddings.num_patches_per_side, rows, columns, images.device)
        patches = tower.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        patches = patches + tower.embeddings.position_embedding(places)
        hidden = tower.encoder(inputs_embeds=patches).last_hidden_state
        return EncodedFrames(model.connector(tower.post_layernorm(hidden)))

    def text(self, model: Any) -> nn.Module:
        found: nn.Module = model.text_model
        return found


def _places(side: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the index (rows * columns) of each patch in a table of side * side positions.

    As in transformers, whose own lookup by masks, before 5.24, waits for the GPU.
    """
    edges = torch.arange(1 / side, 1.0, 1 / side, device=device)
    row, column = (
        torch.bucketize(
            (torch.arange(count, device=device) * (1.0 / count)).clamp(max=1.0 - 1e-6), edges, right=True
        )
        for count in (rows, columns)
    )
    return (row[:, None] * side + column).flatten()
