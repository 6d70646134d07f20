"""The form in which the frames of a recipe's datasets are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...components.images.transform import ImageTransform
from ...components.pixels import resize_images
from ...schemas.errors import SpecError
from ...schemas.specs import IMAGES, Kind
from ..data.frames.choice import FrameChoice
from ..data.frames.stored import Shrink
from ..recipe.loaded import LoadedRecipe
from .sources import DataSource


def with_frames(loaded: LoadedRecipe, sources: Sequence[DataSource]) -> list[DataSource]:
    """Return the sources with the form of their frames, and what makes each camera smaller.

    That is the `resize` of a source of several, or the first transform of a composed policy if it changes an
    image no more when it is applied again.
    """
    form = loaded.sections.data.frames
    return [replace(source, frame_choice=FrameChoice(form, _shrinks(loaded, source))) for source in sources]


def _shrinks(loaded: LoadedRecipe, source: DataSource) -> dict[str, Shrink]:
    if source.name is not None:
        given = {} if source.size is None else dict.fromkeys(source.cameras, source.size)
        found = {name: Shrink(f"resize {size}", size, _resizing(size)) for name, size in given.items()}
    else:
        found = _first_transform(loaded, source)
    smaller = {}
    for name, shrink in found.items():
        (height, width), own = shrink.size, source.info.cameras[source.cameras[name]]
        if height * width < own[0] * own[1]:
            smaller[source.cameras[name]] = shrink
    return smaller


def _first_transform(loaded: LoadedRecipe, source: DataSource) -> dict[str, Shrink]:
    if loaded.sections.policy.type != "composed" or not loaded.transforms:
        return {}
    part, config = loaded.transforms[0]
    if not (issubclass(part, ImageTransform) and part.idempotent):
        return {}
    images = {key: spec for key, spec in source.specs.items() if spec.kind is Kind.IMAGE}
    try:
        results = part.specs(config, images, {})
    except SpecError:  # which wiring reports at its place
        return {}
    transform = part(config, images, {}).eval()
    name = f"{part.__qualname__} {config.model_dump_json(exclude={'keys'})}"
    return {
        key.removeprefix(IMAGES): Shrink(name, _size(results[key].dims), _applying(transform))
        for key in part.cameras(config, images)
    }


def _size(dims: Sequence[Any]) -> tuple[int, int]:
    height, width = dims[-2:]
    return int(height), int(width)


def _resizing(size: tuple[int, int]) -> Any:
    return lambda frame: resize_images(_batch(frame), size)[0, 0].numpy()


def _applying(transform: Any) -> Any:
    return lambda frame: transform.apply_to(_batch(frame), None)[0, 0].numpy()


def _batch(frame: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return a frame (H, W, 3) as images (1, 1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))[None, None]


__all__ = ["with_frames"]
