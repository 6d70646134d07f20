from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...schemas.errors import SpecError
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..images.specs import check_normalization, fold_frames, frame_size, frames, image_features, unfold_frames
from ..pretrained.models import copy_transformer, read_config, read_normalization, source_of


class _Traits(NamedTuple):
    """Traits of the encoders of one `model_type`."""

    class_token: bool
    """True if a token for the whole image precedes those of registers and patches."""
    positions: Literal["on_request", "resized", "any"]
    """Resizing of learned positions to other images: on request, always, or not needed."""


_TRAITS = {
    "vit": _Traits(True, "on_request"),
    "clip_vision_model": _Traits(True, "on_request"),
    "siglip_vision_model": _Traits(False, "on_request"),
    "siglip2_vision_model": _Traits(False, "resized"),
    "dinov2": _Traits(True, "resized"),
    "dinov2_with_registers": _Traits(True, "resized"),
    "dinov3_vit": _Traits(True, "any"),
    "dinov3_convnext": _Traits(True, "any"),
}


class Vision(Backbone):
    """Pretrained image encoder of transformers.

    Supports ViT (Dosovitskiy et al., 2021), CLIP (Radford et al., 2021), SigLIP (Zhai et al., 2023), SigLIP 2
    (Tschannen et al., 2025), DINOv2 (Oquab et al., 2024; Darcet et al., 2024) and DINOv3 (Siméoni et al.,
    2025). Of a model of images and texts, only the image half is built.

    `tokens` (B, T * V * N, D) holds the patches after the last layer, row by row, without class and register
    tokens, and `pooled` (B, T * V * D) one vector per image, of T steps of V cameras. Images must be
    normalized as in the model's training, which is checked if its files say how: `stats: half` of
    `normalize_image` for SigLIP and ViT, `clip` for CLIP, `imagenet` for DINO. Positions of DINOv3 are not
    randomly rescaled in training.
    """

    kind = Kind.IMAGE

    class Config(BackboneConfig):
        type: Literal["vision"]
        pretrained: str | None = Field(default=None, min_length=1)
        """Model on the hub, or directory, that provides architecture and weights, such as `google/siglip-base-patch16-224`."""
        architecture: str | None = Field(default=None, min_length=1)
        """Model that provides the architecture, without weights. One of this and `pretrained` is required."""
        pooling: Literal["model", "class", "mean"] = "model"
        """Pooling: the model's own (a normalized class token; attention pooling for SigLIP), the class token after the last layer, or the mean of the patches."""
        positions: Literal["fixed", "interpolate"] = "fixed"
        """Treatment of images whose size differs from the model's, if it has one: an error, or interpolated positions."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._cameras = self.reads(config, inputs)
        self._frames = frames(self._cameras)
        sizes = _sizes(facts)
        self._traits = _TRAITS[sizes.model_type]
        self._patch = _patch(sizes)
        self._prefix = int(self._traits.class_token) + getattr(sizes, "num_register_tokens", 0)
        encoder: Any = MODEL_MAPPING[type(sizes)]
        self.model: PreTrainedModel = encoder(sizes, **_options(sizes))

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Return the encoder's config and image normalization; raise WeightsError if it is not supported."""
        source = source_of(config)
        otherwise = "use `type: timm` for other image models"
        found = {"config": read_config(source, tuple(_TRAITS), otherwise, part="vision_config")}
        normalization = read_normalization(source) if config.pretrained is not None else {}
        return {**found, "normalization": normalization} if normalization else found

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if the images do not fit in size or range."""
        cameras = cls.reads(config, inputs)
        sizes, size = _sizes(facts), frame_size(cameras)
        _check_size(config, sizes, size, next(iter(cameras)))
        if normalization := facts.get("normalization", facts.get("normalisation")):  # 0.1 saved the latter
            check_normalization(cameras, normalization, str(config.pretrained))
        _check_pooling(config, sizes)
        patch = _patch(sizes)
        grid = (size[0] // patch, size[1] // patch)
        width = sizes.hidden_sizes[-1] if hasattr(sizes, "hidden_sizes") else sizes.hidden_size
        return image_features(cameras, grid[0] * grid[1], width, grid=grid)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="vision", architecture="policysmith/tiny-clip")

    def load_pretrained(self) -> None:
        """Copy the weights of the encoder; raise WeightsError if they do not fit."""
        if self.config.pretrained is not None:
            copy_transformer(self.config.pretrained, self.model, **_options(self.model.config))

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * V * D) and `tokens` (B, T * V * N, D) of normalized float images."""
        images = fold_frames(observations, self._cameras, self.model.dtype)  # (B * T * V, 3, H, W)
        encoded = self.model(**self._given(images))
        hidden = encoded.last_hidden_state
        tokens = hidden[:, self._prefix :]
        pooled = None
        if "pooled" in outputs:
            own = getattr(encoded, "pooler_output", None)
            whole = {"model": hidden[:, 0] if own is None else own, "class": hidden[:, 0]}
            pooled = tokens.mean(1) if self.config.pooling == "mean" else whole[self.config.pooling]
        return unfold_frames(pooled, tokens if "tokens" in outputs else None, self._frames)

    def _given(self, images: Tensor) -> dict[str, Any]:
        """Return the arguments of the encoder's forward pass."""
        if self.model.config.model_type == "siglip2_vision_model":
            grid = (images.shape[2] // self._patch, images.shape[3] // self._patch)
            return {
                "pixel_values": patches(images, self._patch),
                "pixel_attention_mask": None,
                "spatial_shapes": torch.tensor(
                    [grid], device="cpu"
                ),  # on the host, because transformers reads its values
            }
        if self._traits.positions == "on_request":
            own = _native(self.model.config) == tuple(images.shape[2:])
            return {"pixel_values": images, "interpolate_pos_encoding": not own}
        return {"pixel_values": images}


def patches(images: Tensor, size: int) -> Tensor:
    """Cut images (B, 3, H, W) into flat patches (B, N, size * size * 3), row by row."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)


def _sizes(facts: Facts) -> Any:
    held = dict(facts["config"])
    sizes: PreTrainedConfig = CONFIG_MAPPING[held.pop("model_type")].from_dict(held)
    if sizes.model_type == "dinov3_vit":
        sizes.update({"pos_embed_rescale": None, "pos_embed_shift": None, "pos_embed_jitter": None})
    return sizes


def _options(sizes: PreTrainedConfig) -> dict[str, Any]:
    """Return options that omit ViT's pooler, which is not part of its pretraining."""
    return {"add_pooling_layer": False} if sizes.model_type == "vit" else {}


def _patch(sizes: Any) -> int:
    """Return the side, in pixels, of the area behind one token before tokens mix."""
    if sizes.model_type == "dinov3_convnext":
        return int(4 * 2 ** (len(sizes.depths) - 1))
    return int(sizes.patch_size)


def _native(sizes: Any) -> tuple[int, int] | None:
    """Return height and width of the images that the positions belong to."""
    if _TRAITS[sizes.model_type].positions == "any":
        return None
    if sizes.model_type == "siglip2_vision_model":
        side = math.isqrt(sizes.num_patches) * sizes.patch_size
        return side, side
    held = sizes.image_size
    return (held, held) if isinstance(held, int) else (held[0], held[1])


def _check_size(config: Vision.Config, sizes: Any, size: tuple[int, int], source: str) -> None:
    field = "pretrained" if config.pretrained is not None else "architecture"
    label = f"the images are {size[0]} x {size[1]}"
    native, patch = _native(sizes), _patch(sizes)
    if native not in (None, size) and config.positions == "fixed":
        assert native is not None
        own = native[0] if native[0] == native[1] else list(native)
        raise SpecError(
            f"`{getattr(config, field)}` reads images of {native[0]} x {native[1]}, not {size[0]} x {size[1]}",
            field=field,
            source=source,
            label=label,
            help=f"add `{{type: resize, size: {own}}}` to the transforms, or set `positions: interpolate`",
        )
    if size[0] % patch or size[1] % patch:
        raise SpecError(
            f"images of {size[0]} x {size[1]} cannot be cut into patches of {patch}",
            field=field,
            source=source,
            label=label,
            help=f"resize the images to a multiple of {patch}",
        )


def _check_pooling(config: Vision.Config, sizes: Any) -> None:
    lacks = {
        "class": (not _TRAITS[sizes.model_type].class_token, "no class token"),
        "model": (not getattr(sizes, "vision_use_head", True), "no pooling of its own"),
    }
    missing, what = lacks.get(config.pooling, (False, ""))
    if missing:
        raise SpecError(
            f"`{source_of(config)}` has {what}",
            field="pooling",
            label=f"has {what}",
            help="set `pooling: mean`" + (", or `pooling: model`" if config.pooling == "class" else ""),
        )
