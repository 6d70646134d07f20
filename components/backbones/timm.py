from __future__ import annotations

import sys
from collections.abc import Collection
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, NamedTuple, cast

import timm
import torch
from pydantic import Field
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from ...schemas.errors import SpecError
from ...schemas.part import BackboneConfig
from ...schemas.specs import Kind, Spec, Specs
from ...schemas.wording import did_you_mean
from ..base import Backbone, Batch, Facts, Feature
from ..images.specs import check_normalization, fold_frames, frame_size, frames, image_features, unfold_frames
from ..layers.batch_norms import with_norm
from ..pretrained import weights


class Timm(Backbone):
    """Image model of timm (Wightman, 2019), without its classifier.

    `pooled` (B, T * V * D) holds the input of the classifier and `tokens` (B, T * V * N, D) the last feature
    map or sequence, row by row, of T steps of V cameras. With `layer` they hold an earlier map and its mean:
    one of the maps that timm lists for a CNN (a ResNet's stem is the first), which preserve position, or the
    output of a transformer block, without norm.

    Batch norms follow `train()` and `eval()`, and a frozen backbone runs in `eval()`. Small batches of robot
    data disturb their statistics, so ACT freezes them (Zhao et al., 2023) and Diffusion Policy avoids them
    (Chi et al., 2023). The parameters of a ResNet have torchvision's names.
    """

    kind = Kind.IMAGE

    class Config(BackboneConfig):
        type: Literal["timm"]
        name: str
        """Architecture, such as `resnet18` or `tf_efficientnet_lite0`; `timm.list_models()` lists them."""
        pretrained: str | None = Field(default=None, min_length=1)
        """Weights: a model on the hub (`timm/resnet18.a1_in1k`), a file, a directory, or `package://<package>/<file>`."""
        prefix_tokens: Literal["drop", "keep"] = "drop"
        """Drop the class and register tokens of a transformer, or keep them before the patches."""
        layer: Annotated[int, Field(ge=1)] | None = None
        """Map of a CNN or block of a transformer to read, by number as timm lists it; by default the last, after its norm."""
        norm: Literal["batch", "frozen", "group"] = "batch"
        """Norms of a CNN: `batch` as in timm, `frozen` with fixed statistics, weight and bias, or `group` norms of 16 channels."""
        drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
        """Rate at which whole layers are skipped in training (stochastic depth)."""
        positions: Literal["fixed", "interpolate"] = "fixed"
        """Treatment of images whose size differs from that of the weights in a model of fixed size: an error, or interpolation."""

    def __init__(self, config: Config, inputs: Specs, facts: Facts) -> None:
        super().__init__(config, inputs, facts)
        self._cameras = self.reads(config, inputs)
        self._frames = frames(self._cameras)
        self.model: Any = with_norm(
            _create(config.name, frame_size(self._cameras), config.drop_path), config.norm
        )

    @classmethod
    def facts(cls, config: Config) -> dict[str, Any]:
        """Return no facts; raise WeightsError if a local weights file is missing."""
        if config.pretrained is not None:
            weights.find_weights(config.pretrained)
        return {}

    @classmethod
    def specs(cls, config: Config, inputs: Specs, facts: Facts) -> dict[str, Spec]:
        """Return the specs of the outputs; raise SpecError for an unknown model or unreadable images."""
        if not timm.is_model(config.name):
            raise SpecError(
                f"timm has no model `{config.name}`",
                field="name",
                label="unknown model",
                help=did_you_mean(config.name, timm.list_models(), "`timm.list_models()` lists the models"),
            )
        cameras = cls.reads(config, inputs)
        size, source = frame_size(cameras), next(iter(cameras))
        defaults = timm.get_pretrained_cfg(config.name)
        native = (
            tuple(defaults.input_size[1:]) if defaults is not None and defaults.fixed_input_size else size
        )
        if config.pretrained is not None and config.positions == "fixed" and size != native:
            raise SpecError(
                f"`{config.name}` was trained on images of {native[0]} x {native[1]}, not {size[0]} x {size[1]}",
                field="name",
                source=source,
                label=f"the images are {size[0]} x {size[1]}",
                help=f"add `{{type: resize, size: {native[0] if native[0] == native[1] else list(native)}}}` "
                "to the transforms, or set `positions: interpolate`",
            )
        if config.pretrained is not None and defaults is not None:
            trained = {"mean": list(defaults.mean), "std": list(defaults.std)}
            check_normalization(cameras, trained, config.name)
        _check_layer(config, size)
        try:
            found = _probe(config.name, size, config.prefix_tokens, config.layer)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise SpecError(
                f"`{config.name}` cannot read images of {size[0]} x {size[1]}: {error}",
                field="name",
                source=source,
                label=f"the images are {size[0]} x {size[1]}",
                help=f"add `{{type: resize, size: {native[0]}}}` to the transforms" if native != size else "",
            ) from error
        if config.drop_path > 0.0 and not _drops_paths(config.name, size):
            raise SpecError(
                f"`{config.name}` has no stochastic depth",
                field="drop_path",
                label="has none",
                help="leave `drop_path` out, or choose another model",
            )
        _check_norm(config)
        return image_features(cameras, found.tokens, found.width, found.pooled, found.grid)

    @classmethod
    def example(cls) -> Config:
        return cls.Config(type="timm", name="test_efficientnet")

    def load_pretrained(self) -> None:
        """Load the weights that `pretrained` names; raise WeightsError if they do not fit."""
        config = self.config
        if config.pretrained is None:
            return
        path = weights.fetch_weights(config.pretrained)
        with torch.device("meta"):
            whole: Any = timm.create_model(config.name)
            bare = _create(config.name, frame_size(self._cameras), config.drop_path)
        classifier = whole.pretrained_cfg.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        convert = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        state = weights.match_weights(
            weights.read_weights(path),
            bare.state_dict(),
            whole.state_dict(),
            tuple(f"{name}." for name in names),
            None if convert is None else partial(_converted, convert, self.model),
            str(path),
        )
        self.model.load_state_dict(state)

    def forward(self, observations: Batch, outputs: Collection[str]) -> dict[str, Feature]:
        """Return `pooled` (B, T * V * D) and `tokens` (B, T * V * N, D) of normalized float images."""
        images = fold_frames(observations, self._cameras, next(self.model.parameters()).dtype)
        if self.config.layer is not None:
            places = _map(self.model, images, self.config.layer).flatten(2).transpose(1, 2)  # (B * F, N, D)
            mean = places.mean(1) if "pooled" in outputs else None
            return unfold_frames(mean, places if "tokens" in outputs else None, self._frames)
        maps = self.model.forward_features(images)
        pooled = self.model.forward_head(maps) if "pooled" in outputs else None
        tokens = _tokens(self.model, maps, self.config.prefix_tokens) if "tokens" in outputs else None
        return unfold_frames(pooled, tokens, self._frames)


def _create(name: str, size: tuple[int, int], drop_path: float) -> nn.Module:
    """Build the model without classifier, for images of `size` if it depends on it."""
    options: dict[str, Any] = {"num_classes": 0}
    defaults = timm.get_pretrained_cfg(name)
    if defaults is not None and defaults.fixed_input_size:
        options["img_size"] = size
    if drop_path > 0.0:
        options["drop_path_rate"] = drop_path
    model: nn.Module = timm.create_model(name, **options)
    return model


def _map(model: Any, images: Tensor, layer: int) -> Tensor:
    """Return the map (B, D, H, W) of this number."""
    (made,) = model.forward_intermediates(
        images, indices=[layer - 1], stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return cast(Tensor, made)


def _check_layer(config: Timm.Config, size: tuple[int, int]) -> None:
    """Raise SpecError for a layer that the model lacks or does not expose."""
    if config.layer is None:
        return
    if config.prefix_tokens == "keep":
        raise SpecError(
            "the map after a layer has no class or register tokens",
            field="prefix_tokens",
            label="none to keep",
            help="leave `prefix_tokens` or `layer` out",
        )
    layers = _layers(config.name, size)
    if config.layer > layers:
        raise SpecError(
            f"`{config.name}` has {layers} layers to read, not {config.layer}"
            if layers
            else f"`{config.name}` does not expose its layers",
            field="layer",
            label=f"1 to {layers}" if layers else "not exposed",
            help=f"choose a layer up to {layers}" if layers else "leave `layer` out, or choose another model",
        )


@lru_cache(maxsize=64)
def _layers(name: str, size: tuple[int, int]) -> int:
    """Return the number of readable stages or blocks; 0 if the model exposes none."""
    with torch.device("meta"):
        model: Any = _create(name, size, 0.0)
    return len(model.feature_info) if hasattr(model, "forward_intermediates") else 0


def _check_norm(config: Timm.Config) -> None:
    """Raise SpecError for a norm that does not fit the model or its weights."""
    if config.norm == "group" and config.pretrained is not None:
        raise SpecError(
            f"the weights of `{config.pretrained}` are made for batch norms, not for group norms",
            field="norm",
            label="does not fit `pretrained`",
            help="set `norm: frozen` to keep the statistics of the weights, or leave `pretrained` out",
        )
    if problem := _norm_problem(config.name, config.norm):
        raise SpecError(
            f"`{config.name}` cannot have `norm: {config.norm}`: {problem}",
            field="norm",
            label=problem,
            help="leave `norm` out, or choose another model, such as `resnet18`",
        )


@lru_cache(maxsize=64)
def _norm_problem(name: str, norm: str) -> str:
    """Return the reason why a model cannot have a norm, or an empty string."""
    try:
        with torch.device("meta"):
            with_norm(timm.create_model(name, num_classes=0), norm)
    except ValueError as error:
        return str(error)
    return ""


def _converted(convert: Any, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = convert(state, model)
    return converted


def _tokens(model: Any, maps: Tensor, prefix: str) -> Tensor:
    """Flatten (B, D, H, W), (B, H, W, D) or (B, N, D) to (B, N, D)."""
    if maps.ndim == 4:
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            return maps.flatten(1, 2)
        return maps.flatten(2).transpose(1, 2)
    return maps[:, getattr(model, "num_prefix_tokens", 0) :] if prefix == "drop" else maps


@lru_cache(maxsize=64)
def _drops_paths(name: str, size: tuple[int, int]) -> bool:
    """Return whether the model accepts `drop_path`."""
    try:
        with torch.device("meta"):
            _create(name, size, 0.1)
    except (AssertionError, TypeError, ValueError):
        return False
    return True


class _MapSizes(NamedTuple):
    """Sizes of the output for one image."""

    tokens: int
    width: int
    pooled: int
    grid: tuple[int, int] | None
    """Height and width of the feature map, if the tokens form one."""


@lru_cache(maxsize=64)
def _probe(name: str, size: tuple[int, int], prefix: str, layer: int | None) -> _MapSizes:
    """Return the sizes of the output, found on the meta device."""
    with torch.device("meta"), torch.no_grad():
        model: Any = _create(name, size, 0.0).eval()
        if layer is not None:
            _, width, height, across = _map(model, torch.zeros(1, 3, *size), layer).shape
            return _MapSizes(height * across, width, width, (height, across))
        maps = model.forward_features(torch.zeros(1, 3, *size))
        if not isinstance(maps, Tensor) or maps.ndim not in (3, 4):
            raise ValueError("it has no single feature map or sequence of tokens")
        tokens = _tokens(model, maps, prefix)
        if tokens.shape[2] != model.num_features:
            raise ValueError(f"its feature map has {tokens.shape[2]} channels, not {model.num_features}")
        pooled = model.forward_head(maps).shape[1]
        return _MapSizes(tokens.shape[1], tokens.shape[2], pooled, _grid(model, maps, size, tokens.shape[1]))


def _grid(model: Any, maps: Tensor, size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Return height and width of the feature map, or of the patches if they are the tokens."""
    if maps.ndim == 4:
        height, width = maps.shape[1:3] if getattr(model, "output_fmt", "NCHW") == "NHWC" else maps.shape[2:]
        return height, width
    embedding = next((module for module in model.modules() if isinstance(module, PatchEmbed)), None)
    if embedding is None:
        return None
    height, width = size[0] // embedding.patch_size[0], size[1] // embedding.patch_size[1]
    return (height, width) if height * width == tokens else None
