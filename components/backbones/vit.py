from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import ViTConfig, ViTModel

from ...schemas.errors import SpecError
from ...schemas.part import BackboneConfig, Count, Depth
from ...schemas.specs import Kind, Spec, Specs
from ..base import Backbone, Batch, Facts, Feature
from ..images.specs import fold_frames, frame_size, frames, image_features, unfold_frames
from ..pretrained.models import copy_transformer, read_config

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]

_DEFAULTS = {"patch_size": 16, "width": 192, "depth": 12, "heads": 3, "mlp_ratio": 4.0}


class Vit(Backbone):
    """Vision Transformer (Dosovitskiy et al., 2021), in the implementation of transformers.

    `pooled` (B, T * V * D) holds the class tokens and `tokens` (B, T * V * N, D) the patches, of T steps of V
    cameras.
    """

    kind = Kind.IMAGE

    class Config(BackboneConfig):
        type: Literal["vit"]
        pretrained: str | None = None
        """Model on the Hugging Face hub, or directory, that provides sizes and weights, such as `google/vit-base-patch16-224`."""
        patch_size: Count | None = None
        """Side of a patch in pixels; 16, or that of the pretrained model."""
        width: Count | None = None
        """Size of a token; 192, or that of the pretrained model."""
        depth: Depth | None = None
        """Number of layers; 12, or that of the pretrained model."""
        heads: Count | None = None
        """Attention heads; 3, or those of the pretrained model."""
        mlp_ratio: Annotated[float, Field(gt=0.0)] | None = None
        """Hidden size of the feed-forward layers, in token sizes; 4, or that of the pretrained model."""
        dropout: Rate = 0.0
        """Dropout rate of embeddings and layers."""
        attention_dropout: Rate = 0.0
        """Dropout rate of attention weights."""
        positions: Literal["fixed", "interpolate"] = "fixed"
        """Treatment of images whose size differs from the pretrained model's: an error, or interpolated positions."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._cameras = self.reads(config, inputs)
        self._frames = frames(self._cameras)
        sizes = _sizes(config, frame_size(self._cameras), facts)
        self._interpolate = _image_size(sizes) != frame_size(self._cameras)
        self.model = ViTModel(sizes, add_pooling_layer=False)

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Return the pretrained model's config; raise WeightsError if it is not a Vision Transformer."""
        if config.pretrained is None:
            return {}
        return {"config": read_config(config.pretrained, ("vit",), "use `type: timm` for other image models")}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError if sizes contradict each other or the images."""
        cameras = cls.reads(config, inputs)
        size = frame_size(cameras)
        sizes = _sizes(config, size, facts)
        expected, patch = _image_size(sizes), sizes.patch_size
        source = next(iter(cameras))
        if size != expected and config.positions == "fixed":
            raise SpecError(
                f"`{config.pretrained}` reads images of {expected[0]} x {expected[1]}, not {size[0]} x {size[1]}",
                field="pretrained",
                source=source,
                label=f"the images are {size[0]} x {size[1]}",
                help=f"add `{{type: resize, size: {expected[0] if expected[0] == expected[1] else list(expected)}}}` "
                "to the transforms, or set `positions: interpolate`",
            )
        if not isinstance(patch, int) or size[0] % patch or size[1] % patch:
            raise SpecError(
                f"images of {size[0]} x {size[1]} cannot be cut into patches of {patch}",
                field="pretrained" if config.patch_size is None and config.pretrained else "patch_size",
                source=source,
                label=f"the images are {size[0]} x {size[1]}",
                help=f"choose a `patch_size` that divides both, or resize the images to a multiple of {patch}",
            )
        if sizes.hidden_size % sizes.num_attention_heads:
            raise SpecError(
                f"a width of {sizes.hidden_size} cannot be shared by {sizes.num_attention_heads} heads",
                field="width" if config.heads is None else "heads",
                label=f"does not divide {sizes.hidden_size}",
                help="choose a `width` that is a multiple of `heads`",
            )
        grid = (size[0] // patch, size[1] // patch)
        return image_features(cameras, grid[0] * grid[1], sizes.hidden_size, grid=grid)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="vit", patch_size=8, width=16, depth=2, heads=2)

    def load_pretrained(self) -> None:
        """Copy the weights of the pretrained model; raise WeightsError if they do not fit."""
        if self.config.pretrained is not None:
            copy_transformer(self.config.pretrained, self.model, add_pooling_layer=False)

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * V * D) and `tokens` (B, T * V * N, D) of normalized float images."""
        images = fold_frames(observations, self._cameras, self.model.dtype)
        hidden = self.model(pixel_values=images, interpolate_pos_encoding=self._interpolate).last_hidden_state
        return unfold_frames(
            hidden[:, 0] if "pooled" in outputs else None,
            hidden[:, 1:] if "tokens" in outputs else None,
            self._frames,
        )


def _sizes(config: Vit.Config, size: tuple[int, int], facts: Facts) -> ViTConfig:
    """Return the model's config; raise SpecError if a given size differs from the pretrained model's."""
    given = {name: getattr(config, name) for name in _DEFAULTS if getattr(config, name) is not None}
    rates: dict[str, Any] = {
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }
    if config.pretrained is not None:
        sizes: ViTConfig = ViTConfig.from_dict({**facts["config"], **rates})
        held = {
            "patch_size": sizes.patch_size,
            "width": sizes.hidden_size,
            "depth": sizes.num_hidden_layers,
            "heads": sizes.num_attention_heads,
            "mlp_ratio": sizes.intermediate_size / sizes.hidden_size,
        }
        for name, value in given.items():
            if held[name] != value:
                raise SpecError(
                    f"`{name}` is {value}, but `{config.pretrained}` has {held[name]}",
                    field=name,
                    label=f"the pretrained model has {held[name]}",
                    help=f"leave `{name}` out, or `pretrained` to train from scratch",
                )
        return sizes
    chosen = {**_DEFAULTS, **given}
    return ViTConfig(
        image_size=size,
        patch_size=chosen["patch_size"],
        hidden_size=chosen["width"],
        num_hidden_layers=chosen["depth"],
        num_attention_heads=chosen["heads"],
        intermediate_size=round(chosen["width"] * chosen["mlp_ratio"]),
        **rates,
    )


def _image_size(sizes: ViTConfig) -> tuple[int, int]:
    size = sizes.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])
