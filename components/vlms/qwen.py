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

from ..layers.rotary import RotaryEmbedding, RotaryTable, apply_rotary, rotary_frequencies
from .base import Family, Seen
from .sequence import Places


class Qwen(Family):
    """What both have: merged patches, a marker token before and after each image, and time, height and width as axes.

    All frames have one size, so that they are a batch: the towers of transformers pack images of different sizes into
    one sequence, whose bounds they read from the device. Patches lie block by block, as these are merged.
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
        """Whether the frequencies of the three axes take turns."""

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        vision = self.sizes.vision_config
        return self.divided(size, vision.patch_size * vision.spatial_merge_size, square=False)

    def frame_tokens(self, size: tuple[int, int]) -> int:
        return super().frame_tokens(size) + 2

    def frame_places(self, size: tuple[int, int], device: torch.device) -> Places:
        """The marker, the image at one time, row by row and column by column, and the marker after its longer side."""
        rows, columns = self.grid(size)
        marker = Places.in_line(1, 3, device)
        token = torch.arange(rows * columns, device=device)
        last = token == rows * columns - 1
        offset = torch.stack([torch.zeros_like(token), token // columns, token % columns])
        return Places.joined([marker, Places(last * max(rows, columns), offset), marker])

    def see(self, model: Any, images: Tensor) -> Seen:
        seen = self._look(model.visual, images)
        start, end = (
            self.embedding(model)(torch.full((len(images), 1), marker, device=images.device))
            for marker in (self.sizes.vision_start_token_id, self.sizes.vision_end_token_id)
        )  # (F, 1, D)
        framed = torch.cat([start, seen.embeddings, end], dim=1)
        return Seen(framed, [F.pad(deep, (0, 0, 1, 1)) for deep in seen.deep])

    @abstractmethod
    def _look(self, tower: Any, images: Tensor) -> Seen:
        """Frames (F, 3, H, W) through the vision tower, without the markers."""

    def _patches(self, tower: Any, images: Tensor) -> Tensor:
        """Embedded patches (F, P, D) of frames; a still image is shown for all steps of a patch in time."""
        vision = self.sizes.vision_config
        patch, steps = vision.patch_size, vision.temporal_patch_size
        blocks = self._by_block(F.pixel_unshuffle(images, patch))  # (F, P, 3 * patch * patch)
        pixels = blocks.unflatten(2, (3, 1, patch * patch)).expand(-1, -1, -1, steps, -1)
        projection = tower.patch_embed.proj
        embedded: Tensor = F.linear(pixels.flatten(2), projection.weight.flatten(1), projection.bias)
        return embedded

    def _by_block(self, maps: Tensor) -> Tensor:
        """Maps (F, C, h, w) as places (F, h * w, C), one block of merged places after the other."""
        merge = self.sizes.vision_config.spatial_merge_size
        rows, columns = maps.shape[2] // merge, maps.shape[3] // merge
        cut = maps.unflatten(3, (columns, merge)).unflatten(2, (rows, merge))
        places: Tensor = cut.permute(0, 2, 4, 3, 5, 1).flatten(1, 4)
        return places

    def _coordinates(self, images: Tensor) -> Tensor:
        """Row and column (P, 2) of each patch."""
        patch = self.sizes.vision_config.patch_size
        rows = torch.arange(images.shape[2] // patch, device=images.device)
        columns = torch.arange(images.shape[3] // patch, device=images.device)
        return self._by_block(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None])[0]

    def _turns(self, coordinates: Tensor) -> RotaryTable:
        """The rotation of heads by the places of their patches: half of the frequencies for rows, half for columns."""
        vision = self.sizes.vision_config
        quarter = vision.hidden_size // vision.num_heads // 4
        base = vision.rope_parameters["rope_theta"]
        frequencies = rotary_frequencies(quarter, base, coordinates.device)
        angles = (coordinates[..., None] * frequencies).flatten(1)  # (P, E / 2)
        return angles.cos(), angles.sin()

    def _attend(self, attention: Any, hidden: Tensor, turns: RotaryTable, near: Tensor | None) -> Tensor:
        """Attention of the patches (F, P, D) of each frame, under mask near (P, P)."""
        heads = attention.qkv(hidden).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads  # (F, heads, P, E)
        query, key = apply_rotary(query, turns), apply_rotary(key, turns)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=near, scale=attention.scaling)
        out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Qwen25Vl(Qwen):
    """Qwen2.5-VL (Bai et al., 2025): most vision layers attend within windows."""

    model = Qwen2_5_VLModel
    with_head = Qwen2_5_VLForConditionalGeneration
    interleaved = False

    def _look(self, tower: Any, images: Tensor) -> Seen:
        vision = self.sizes.vision_config
        hidden, coordinates = self._patches(tower, images), self._coordinates(images)
        turns = self._turns(coordinates)
        window = (coordinates // (vision.window_size // vision.patch_size)).T  # (2, P)
        near = (window[:, :, None] == window[:, None, :]).all(0)  # (P, P)
        for index, block in enumerate(tower.blocks):
            mask = None if index in vision.fullatt_block_indexes else near
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), turns, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        return Seen(tower.merger(hidden).unflatten(0, (len(images), -1)))


class Qwen3Vl(Qwen):
    """Qwen3-VL (Qwen team, 2025): learned positions, and features of earlier vision layers added in the language model."""

    model = Qwen3VLModel
    with_head = Qwen3VLForConditionalGeneration
    interleaved = True

    def _look(self, tower: Any, images: Tensor) -> Seen:
        vision = self.sizes.vision_config
        hidden, coordinates = self._patches(tower, images), self._coordinates(images)
        hidden = hidden + self._positions(tower, images).to(hidden.dtype)
        turns, deep = self._turns(coordinates), []
        for index, block in enumerate(tower.blocks):
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), turns, None)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in vision.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[vision.deepstack_visual_indexes.index(index)]
                deep.append(merger(hidden).unflatten(0, (len(images), -1)))
        return Seen(tower.merger(hidden).unflatten(0, (len(images), -1)), deep)

    def _positions(self, tower: Any, images: Tensor) -> Tensor:
        """Learned positions (1, P, D), a square map resampled to the patches of the frames."""
        side, patch = tower.num_grid_per_side, self.sizes.vision_config.patch_size
        square = tower.pos_embed.weight.T.unflatten(1, (side, side))[None].float()  # (1, D, side, side)
        size = (images.shape[2] // patch, images.shape[3] // patch)
        return self._by_block(F.interpolate(square, size=size, mode="bilinear", align_corners=True))
