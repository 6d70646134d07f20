"""Specs of cameras, and their tensors (B, T, 3, H, W) as one batch of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ...schemas.errors import SpecError
from ...schemas.part import Count
from ...schemas.specs import Kind, Range, Spec, Specs
from ..base import Batch, Feature

ImageSize = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]

IMAGE_STATISTICS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "zero_one": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}
"""Means and deviations of each channel of images in [0, 1], by name."""


def height_width(size: int | list[int]) -> tuple[int, int]:
    """Return `96` or `[96, 128]` as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def frame_size(cameras: Specs) -> tuple[int, int]:
    """Return the height and width that all cameras share; raise SpecError if they differ or are not RGB."""
    first, *others = cameras.items()
    for key, spec in cameras.items():
        if spec.dims[2] != 3:
            raise SpecError(
                f"`{key}` has {spec.dims[2]} channels; images have 3", source=key, label="not RGB"
            )
    for key, spec in others:
        if spec.dims[1:] != first[1].dims[1:]:
            raise SpecError(
                f"`{key}` is {spec} and `{first[0]}` is {first[1]}; one backbone reads cameras of one size",
                source=key,
                label="cameras differ in size",
                help=f"add `{{type: resize, size: {list(first[1].dims[3:])}}}` to the transforms, "
                "or give each camera its own backbone with `reads`",
            )
    _, _, _, height, width = first[1].dims
    assert isinstance(height, int)
    assert isinstance(width, int)
    return height, width


def frames(cameras: Specs) -> int:
    """Return the number of frames of one sample: observation steps times cameras."""
    count = 0
    for spec in cameras.values():
        assert isinstance(spec.dims[1], int)
        count += spec.dims[1]
    return count


def image_features(
    cameras: Specs, tokens: int, width: int, pooled: int | None = None, grid: tuple[int, int] | None = None
) -> dict[str, Spec]:
    """Return specs of `pooled` and `tokens`, with `tokens` tokens of `width`, `pooled` values per frame.

    `grid` is the height and width of the feature map, if the tokens are its places.
    """
    count, pooled = frames(cameras), pooled or width
    names = ", ".join(key.rpartition(".")[2] for key in cameras)
    steps = count // len(cameras)
    why = f"camera{'s' if len(cameras) > 1 else ''} {names} x {steps} step{'s' if steps > 1 else ''}"
    return {
        "pooled": Spec(Kind.POOLED, ("B", count * pooled), f"{why} x {pooled}"),
        "tokens": Spec(
            Kind.TOKENS,
            ("B", count * tokens, width),
            f"{why} x {tokens} tokens",
            grid=None if grid is None else (count, *grid),
        ),
    }


def check_normalization(cameras: Specs, wanted: Mapping[str, list[float]], model: str) -> None:
    """Raise SpecError for images normalized by another `mean` and `std` than the model was trained with."""
    expected = (wanted["mean"], wanted["std"])
    named = next((name for name, known in IMAGE_STATISTICS.items() if _near(known, expected)), None)
    options = f"stats: {named}" if named else f"mean: {expected[0]}, std: {expected[1]}"
    for key, spec in cameras.items():
        if spec.normalized_by is not None and not _near(spec.normalized_by, expected):
            mean, std = (list(values) for values in spec.normalized_by)
            raise SpecError(
                f"`{model}` was trained on images normalized by mean {expected[0]} and deviation {expected[1]}, "
                f"not by mean {mean} and deviation {std}",
                field="pretrained",
                source=key,
                trait="range",
                label="was trained on images normalized otherwise",
                help=f"use `{{type: normalize_image, {options}}}`",
            )


def _near(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    """Return whether two pairs of mean and deviation agree within rounding."""
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
    return all(abs(first - second) < 1e-3 for first, second in pairs)


def fold_frames(observations: Batch, cameras: Specs, dtype: torch.dtype) -> Tensor:
    """Stack all frames to one batch (B * T * V, 3, H, W) in `dtype`; raise SpecError for bytes."""
    images = torch.stack([observations[key] for key in cameras], dim=2)  # (B, T, V, 3, H, W)
    if not images.is_floating_point():
        raise SpecError(
            f"images reach the backbone as {images.dtype}, not as normalized floats",
            label="not normalized",
            help="add `{type: normalize_image}` to the transforms",
        )
    return images.flatten(0, 2).to(dtype)


def unfold_frames(pooled: Tensor | None, tokens: Tensor | None, frames: int) -> dict[str, Feature]:
    """Reshape features per frame, (B * F, P) and (B * F, N, D), to (B, F * P) and (B, F * N, D)."""
    features = {}
    if pooled is not None:
        features["pooled"] = Feature(pooled.reshape(-1, frames * pooled.shape[-1]))
    if tokens is not None:
        features["tokens"] = Feature(tokens.reshape(-1, frames * tokens.shape[1], tokens.shape[2]))
    return features


def with_size(spec: Spec, size: tuple[int, int], why: str) -> Spec:
    """Return the spec of images at a new height and width."""
    return replace(spec, dims=(*spec.dims[:3], *size), why=f"{spec.why}, {why}".removeprefix(", "))


def refuse_normalized_images(cameras: Specs, name: str, why: str) -> None:
    """Raise SpecError for images that are already normalized; `why` says in a phrase what `name` requires."""
    for key, spec in cameras.items():
        if spec.range is Range.NORMALIZED:
            raise SpecError(
                f"`{name}` {why}, but `{key}` is normalized",
                source=key,
                trait="range",
                label="too late",
                help="put it before `normalize_image`",
            )
