"""What `meta/info.json` says about a dataset's columns and cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Any

from ....schemas.errors import DatasetError
from ....schemas.specs import IMAGES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ACTION = "action"
STATE = "observation.state"
OBSERVATION = "observation."
RGB_ONLY = "cameras are read as RGB with 8 bits a channel"
_NUMERIC = ("float", "int", "uint", "bool")
_MOST_VALUES = 1 << 28
_MOST_PIXELS = 16_384
"""Pixels of the longest side of an image."""


class Storage(StrEnum):
    """Where a camera's frames lie."""

    VIDEO = "video"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column. `shape` is that of a single frame's value; `names` has one entry a dimension, if known.

    `parts` are the dataset's own columns that it was mapped from, none where it is one of them itself.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    parts: tuple[Feature, ...] = ()
    is_depth: bool = False

    @property
    def sources(self) -> tuple[Feature, ...]:
        """The dataset's own columns that hold its values, side by side."""
        return self.parts or (self,)

    @property
    def size(self) -> int:
        """Values of one frame."""
        return math.prod(self.shape)

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers in the parquet files."""
        return self.dtype.startswith(_NUMERIC)

    @property
    def is_policy_input_or_target(self) -> bool:
        """True for numbers that a policy may read (`observation.*`) or must predict (`action`), as a vector.

        Images kept as arrays of numbers, such as depth under `observation.images.*`, are none.
        """
        if not self.is_numeric or self.key.startswith(IMAGES):
            return False
        return self.key == ACTION or self.key.startswith(OBSERVATION)

    @property
    def is_camera(self) -> bool:
        """True for a column of images."""
        return self.dtype in (Storage.VIDEO, Storage.IMAGE)


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera: `key` is its column in the dataset, `height` and `width` are in pixels.

    `unreadable` says in a phrase why its images are not 8-bit RGB, such as depth; it is empty for one that can be read.
    """

    name: str
    key: str
    storage: Storage
    height: int
    width: int
    unreadable: str = ""


def parse_features(info: Mapping[str, Any], *, path: Path) -> dict[str, Feature]:
    """Read the `features` section of `info.json`, which lies at `path`.

    Raises:
        DatasetError: the section is absent, or an entry has no dtype or an unusable shape.
    """
    section = info.get("features")
    if not isinstance(section, dict) or not section:
        raise DatasetError(f"{path} has no `features` section. It is not a LeRobot dataset's info.json")
    features: dict[str, Feature] = {}
    for key, entry in section.items():
        if not key.isprintable() or not key or any(step in ("", ".", "..") for step in key.split("/")):
            raise DatasetError(
                f"{path}: a feature is called {key[:80]!r}, which can be no column or directory. Rename it"
            )
        shape = entry.get("shape") if isinstance(entry, dict) else None
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(dtype, str) or not isinstance(shape, list | tuple):
            raise DatasetError(f"{path}: feature `{key}` needs a `dtype` and a `shape`")
        if not all(type(size) is int and size > 0 for size in shape):
            raise DatasetError(
                f"{path}: feature `{key}` has the shape {_short(shape)}; every size must be at least 1"
            )
        if len(shape) > 8 or max(shape, default=1) > _MOST_VALUES or math.prod(shape) > _MOST_VALUES:
            raise DatasetError(
                f"{path}: feature `{key}` has the shape {_short(shape)}, more than {_MOST_VALUES:,} values a frame. "
                "Correct it"
            )
        depth = _is_depth(entry)
        features[key] = Feature(
            key, dtype, tuple(shape) or (1,), _flat_names(entry.get("names")), is_depth=depth
        )
    return features


def parse_cameras(features: Mapping[str, Feature], *, path: Path) -> dict[str, Camera]:
    """Find the cameras among `features`, by name: `observation.images.top` is the camera `top`.

    Raises:
        DatasetError: an image's shape has no recognisable height and width, or two cameras share a name.
    """
    cameras: dict[str, Camera] = {}
    for feature in features.values():
        if not feature.is_camera:
            continue
        name = feature.key.removeprefix(IMAGES).removeprefix(OBSERVATION)
        if name in cameras:
            raise DatasetError(
                f"{path}: `{cameras[name].key}` and `{feature.key}` both name the camera `{name}`. Rename one"
            )
        height, width, channels = _image_size(feature, path)
        if max(height, width) > _MOST_PIXELS:
            raise DatasetError(
                f"{path}: camera `{feature.key}` has images of {height} x {width} pixels (height x width), more than "
                f"{_MOST_PIXELS:,} on a side. Correct its shape"
            )
        unreadable = ""
        if feature.is_depth:
            unreadable = "holds depth"
        elif channels != 3:
            unreadable = f"has {channels} channel{'' if channels == 1 else 's'}"
        (source,) = feature.sources
        cameras[name] = Camera(name, source.key, Storage(feature.dtype), height, width, unreadable)
    return cameras


def _is_depth(entry: Mapping[str, Any]) -> bool:
    """Return True for a feature that LeRobot marks as depth."""
    info = entry.get("info") or entry.get("video_info")
    flags = {**entry, **(info if isinstance(info, dict) else {})}
    return any(flags.get(name) is True for name in ("is_depth_map", "video.is_depth_map"))


def flat_names(feature: Feature) -> tuple[str, ...]:
    """Return one name a value; none where the dataset does not give as many as there are values."""
    return feature.names if feature.names is not None and len(feature.names) == feature.size else ()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flat_names(names: object) -> tuple[str, ...] | None:
    """Names come as a list, or grouped: `{"motors": ["shoulder", "elbow"]}`."""
    if isinstance(names, dict):
        names = list(
            chain.from_iterable(group if isinstance(group, list) else [group] for group in names.values())
        )
    if isinstance(names, list | tuple) and names:
        return tuple(str(name) for name in names)
    return None


def _image_size(feature: Feature, path: Path) -> tuple[int, int, int]:
    """Return height, width and number of channels."""
    shape, names = feature.shape, feature.names
    if len(shape) == 3:
        if names is not None and "height" in names and "width" in names and len(names) == 3:
            height, width = names.index("height"), names.index("width")
            return shape[height], shape[width], shape[3 - height - width]
        if shape[2] in (1, 3, 4):
            return shape[0], shape[1], shape[2]
        if shape[0] in (1, 3, 4):
            return shape[1], shape[2], shape[0]
    raise DatasetError(
        f"{path}: camera `{feature.key}` has the shape {list(shape)}; expected [height, width, 3] or [3, height, width]"
    )
