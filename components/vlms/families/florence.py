"""Florence-2: DaViT and the encoder of BART."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration, Florence2Model, PreTrainedModel

from ...layers.rotary import RotaryEmbedding
from ..base import EncodedFrames, VlmFamily


class Florence(VlmFamily):
    """Encoder of Florence-2 (Xiao et al., 2024), as in X-VLA; the decoder is not built.

    The tokens of an image are the mean of its places, followed by the places.
    """

    model = Florence2Model
    with_head = Florence2ForConditionalGeneration
    attention = "bidirectional"
    has_key_values = False
    text_models = ("bart",)

    @classmethod
    def truncate(cls, held: dict[str, Any], depth: int | None) -> dict[str, Any]:
        text = {**held["text_config"], "decoder_layers": 0}
        if depth is not None:
            text["encoder_layers"] = depth
        text.pop("num_hidden_layers", None)
        return {**held, "text_config": text}

    @property
    def depth(self) -> int:
        return int(self.text_sizes.encoder_layers)

    def build(self) -> nn.Module:
        whole: Any = self.model(self.sizes)
        kept = nn.Module()
        kept.vision_tower, kept.multi_modal_projector = whole.vision_tower, whole.multi_modal_projector
        kept.language_model = whole.language_model.encoder
        return kept

    def loadable(self, model: Any, head: nn.Linear | None) -> PreTrainedModel:
        with torch.device("meta"):
            whole: Any = self.model(self.sizes)
        whole.vision_tower, whole.multi_modal_projector = model.vision_tower, model.multi_modal_projector
        whole.language_model.encoder = model.language_model
        loadable: PreTrainedModel = whole
        return loadable

    def rotary(self, base: float | None) -> RotaryEmbedding | None:
        return None

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        vision, stride = self.sizes.vision_config, 1
        for step in vision.patch_stride:
            stride *= step
        rows, columns = self.divide(size, stride, square=False)
        if max(rows, columns) > vision.max_position_embeddings:
            most = vision.max_position_embeddings * stride
            raise self.size_error(size, (min(size[0], most), min(size[1], most)))
        return rows, columns

    def frame_tokens(self, size: tuple[int, int]) -> int:
        return super().frame_tokens(size) + 1

    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        return EncodedFrames(model.multi_modal_projector(model.vision_tower(images).last_hidden_state))

    def prepare(self, model: Any, embeddings: Tensor, positions: Tensor) -> Tensor:
        encoder = model.language_model
        learned = F.embedding(positions[0] + encoder.embed_positions.offset, encoder.embed_positions.weight)
        prepared: Tensor = encoder.layernorm_embedding(embeddings + learned)
        return F.dropout(prepared, p=encoder.dropout, training=encoder.training)

    def layers(self, model: Any) -> nn.ModuleList:
        found: nn.ModuleList = model.language_model.layers
        return found

    def finish(self, model: Any, hidden: Tensor) -> Tensor:
        return hidden
