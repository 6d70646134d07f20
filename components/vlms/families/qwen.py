"""Qwen2.5-VL and Qwen3-VL: vision transformers of any image size, and rotary embeddings on three axes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)

from ...layers.rotary import RotaryEmbedding, RotaryTable, apply_rotary, rotary_frequencies
from ..base import EncodedFrames, VlmFamily
from ..sequence import Places


class Qwen(VlmFamily):
    """Shared traits: merged patches, markers around each image, and time, height and width as axes.

    All frames have one size and form a batch, whereas the towers of transformers pack images of different
    sizes into one sequence, whose bounds they read from the device. Patches are ordered by the blocks in
    which they merge.
    """

    attention = "causal"

    @property
    def axes(self) -> int:
        return 3

    def rotary(self, base: float | None) -> RotaryEmbedding | None:
        plain = super().rotary(base)
        assert plain is not None
        parameters = self.text_sizes.rope_parameters
        time, height, width = parameters["mrope_section"]
        return RotaryEmbedding(plain.base, plain.size, (time, height, width), self.interleaved)

    @property
    @abstractmethod
    def interleaved(self) -> bool:
        """True if the frequencies of the three axes take turns."""

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        vision = self.sizes.vision_config
        return self.divide(size, vision.patch_size * vision.spatial_merge_size, square=False)

    def frame_tokens(self, size: tuple[int, int]) -> int:
        return super().frame_tokens(size) + 2

    def frame_places(self, size: tuple[int, int], device: torch.device) -> Places:
        """Return places of the marker, the image at one time in row order, and the marker behind it.

        The final marker follows after the longer side of the image.
        """
        rows, columns = self.grid(size)
        marker = Places.sequential(1, 3, device)
        token = torch.arange(rows * columns, device=device)
        last = token == rows * columns - 1
        offset = torch.stack([torch.zeros_like(token), token // columns, token % columns])
        return Places.concatenate([marker, Places(last * max(rows, columns), offset), marker])

    def encode_frames(self, model: Any, images: Tensor) -> EncodedFrames:
        encoded = self._encode(model.visual, images)
        start, end = (
            self.embedding(model)(torch.full((images.shape[0], 1), marker, device=images.device))
            for marker in (self.sizes.vision_start_token_id, self.sizes.vision_end_token_id)
        )  # (F, 1, D)
        framed = torch.cat([start, encoded.embeddings, end], dim=1)
        return EncodedFrames(framed, [F.pad(deep, (0, 0, 1, 1)) for deep in encoded.deep])

    @abstractmethod
    def _encode(self, tower: Any, images: Tensor) -> EncodedFrames:
        """Encode frames (F, 3, H, W) by the vision tower, without the markers."""

    def _patches(self, tower: Any, images: Tensor) -> Tensor:
        """Return embedded patches (F, P, D) of frames; a still image fills all time steps of a patch."""
        vision = self.sizes.vision_config
        patch, steps = vision.patch_size, vision.temporal_patch_size
        blocks = self._by_block(F.pixel_unshuffle(images, patch))  # (F, P, 3 * patch * patch)
        pixels = blocks.unflatten(2, (3, 1, patch * patch)).expand(-1, -1, -1, steps, -1)
        projection = tower.patch_embed.proj
        embedded: Tensor = F.linear(pixels.flatten(2), projection.weight.flatten(1), projection.bias)
        return embedded

    def _by_block(self, maps: Tensor) -> Tensor:
        """Reorder maps (F, C, h, w) to places (F, h * w, C), by blocks of merged places."""
        merge = self.sizes.vision_config.spatial_merge_size
        rows, columns = maps.shape[2] // merge, maps.shape[3] // merge
        cut = maps.unflatten(3, (columns, merge)).unflatten(2, (rows, merge))
        places: Tensor = cut.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)
        return places

    def _coordinates(self, images: Tensor) -> Tensor:
        """Return row and column (P, 2) of each patch."""
        patch = self.sizes.vision_config.patch_size
        rows = torch.arange(images.shape[2] // patch, device=images.device)
        columns = torch.arange(images.shape[3] // patch, device=images.device)
        return self._by_block(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None])[0]

    def _rotary_table(self, coordinates: Tensor) -> RotaryTable:
        """Return rotary cosines and sines by patch: half of the frequencies for rows, half for columns."""
        vision = self.sizes.vision_config
        quarter = vision.hidden_size // vision.num_heads // 4
        base = vision.rope_parameters["rope_theta"]
        frequencies = rotary_frequencies(quarter, base, coordinates.device)
        angles = (coordinates[..., None] * frequencies).flatten(1)  # (P, E / 2)
        return angles.cos(), angles.sin()

    def _attend(self, attention: Any, hidden: Tensor, table: RotaryTable, near: Tensor | None) -> Tensor:
        """Attend within the patches (F, P, D) of each frame, under mask near (P, P)."""
        heads = attention.qkv(hidden).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads  # (F, heads, P, E)
        query, key = apply_rotary(query, table), apply_rotary(key, table)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=near, scale=attention.scaling)
        out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Qwen25Vl(Qwen):
    """Qwen2.5-VL (Bai et al., 2025): most vision layers attend within windows."""

    model = Qwen2_5_VLModel
    with_head = Qwen2_5_VLForConditionalGeneration
    interleaved = False

    def _encode(self, tower: Any, images: Tensor) -> EncodedFrames:
        vision = self.sizes.vision_config
        hidden, coordinates = self._patches(tower, images), self._coordinates(images)
        table = self._rotary_table(coordinates)
        window = (coordinates // (vision.window_size // vision.patch_size)).T  # (2, P)
        near = (window[:, :, None] == window[:, None, :]).all(0)  # (P, P)
        for index, block in enumerate(tower.blocks):
            mask = None if index in vision.fullatt_block_indexes else near
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), table, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return EncodedFrames(tower.merger(hidden).unflatten(0, (images.shape[0], -1)))


class Qwen3Vl(Qwen):
    """Qwen3-VL (Qwen team, 2025): learned positions, and DeepStack features of earlier vision layers."""

    model = Qwen3VLModel
    with_head = Qwen3VLForConditionalGeneration
    interleaved = True

    def _encode(self, tower: Any, images: Tensor) -> EncodedFrames:
        vision = self.sizes.vision_config
        hidden, coordinates = self._patches(tower, images), self._coordinates(images)
        hidden = hidden + self._positions(tower, images).to(hidden.dtype)
        table, deep = self._rotary_table(coordinates), []
        for index, block in enumerate(tower.blocks):
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), table, None)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in vision.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[vision.deepstack_visual_indexes.index(index)]
                deep.append(merger(hidden).unflatten(0, (images.shape[0], -1)))
        return EncodedFrames(tower.merger(hidden).unflatten(0, (images.shape[0], -1)), deep)

    def _positions(self, tower: Any, images: Tensor) -> Tensor:
        """Return learned positions (1, P, D): a square map resampled to the patches of the frames."""
        side, patch = tower.num_grid_per_side, self.sizes.vision_config.patch_size
        square = tower.pos_embed.weight.T.unflatten(1, (side, side))[None].float()  # (1, D, side, side)
        size = (images.shape[2] // patch, images.shape[3] // patch)
        return self._by_block(F.interpolate(square, size=size, mode="bilinear", align_corners=True))
