"""Columns and cameras of a dataset, from `meta/info.json`."""

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
TASK_INDEX = "task_index"
OBSERVATION = "observation."
RGB_ONLY = "only 8-bit RGB cameras are supported"
_NUMERIC = ("float", "int", "uint", "bool")
_MOST_VALUES = 1 << 28
_MOST_PIXELS = 16_384
"""Upper bound of the longer side of an image."""


class Storage(StrEnum):
    """Storage of a camera's frames."""

    VIDEO = "video"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a frame.

    Attributes:
        shape: Shape of the value of a single frame.
        names: One name per dimension, if known.
        parts: Columns of the dataset that the feature is mapped from; empty if it is a column itself.
        start: First value of the column that it is a slice of.
        whole: Column that it is a slice of.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    parts: tuple[Feature, ...] = ()
    is_depth: bool = False
    start: int = 0
    whole: Feature | None = None

    @property
    def column(self) -> Feature:
        """Column of the dataset that holds its values, and maybe others."""
        return self.whole or self

    @property
    def origin(self) -> str:
        """Name of the column, or of the slice of it: `action[0:7]`."""
        return self.key if self.whole is None else f"{self.key}[{self.start}:{self.start + self.size}]"

    @property
    def sources(self) -> tuple[Feature, ...]:
        """Columns of the dataset that hold its values."""
        return self.parts or (self,)

    @property
    def size(self) -> int:
        """Number of values of one frame."""
        return math.prod(self.shape)

    @property
    def is_numeric(self) -> bool:
        """True for numbers in the parquet files."""
        return self.dtype.startswith(_NUMERIC)

    @property
    def is_policy_input_or_target(self) -> bool:
        """True for numbers that a policy may read (`observation.*`) or must predict (`action`), as a vector.

        Images stored as arrays, such as depth under `observation.images.*`, do not count.
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
    """One camera.

    Attributes:
        key: Column in the dataset.
        height: Height in pixels.
        width: Width in pixels.
        unreadable: Reason, as a phrase, why its images are not 8-bit RGB; empty if they are.
    """

    name: str
    key: str
    storage: Storage
    height: int
    width: int
    unreadable: str = ""


def parse_features(info: Mapping[str, Any], *, path: Path) -> dict[str, Feature]:
    """Read the `features` section of the `info.json` at `path`.

    Raises:
        DatasetError: The section is absent, or an entry has no dtype or an unusable shape.
    """
    section = info.get("features")
    if not isinstance(section, dict) or not section:
        raise DatasetError(f"{path} has no `features` section; use the info.json of a LeRobot dataset")
    features: dict[str, Feature] = {}
    for key, entry in section.items():
        if not key.isprintable() or not key or any(step in ("", ".", "..") for step in key.split("/")):
            raise DatasetError(
                f"{path}: the feature {key[:80]!r} cannot name a column or directory; rename it"
            )
        shape = entry.get("shape") if isinstance(entry, dict) else None
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(dtype, str) or not isinstance(shape, list | tuple):
            raise DatasetError(f"{path}: feature `{key}` lacks a `dtype` or a `shape`; add them")
        if not all(type(size) is int and size > 0 for size in shape):
            raise DatasetError(
                f"{path}: feature `{key}` has the shape {_short(shape)}; use sizes of at least 1"
            )
        if len(shape) > 8 or max(shape, default=1) > _MOST_VALUES or math.prod(shape) > _MOST_VALUES:
            raise DatasetError(
                f"{path}: feature `{key}` has the shape {_short(shape)}, more than {_MOST_VALUES:,} values per frame; "
                "correct it"
            )
        depth = _is_depth(entry)
        features[key] = Feature(
            key, dtype, tuple(shape) or (1,), _flat_names(entry.get("names")), is_depth=depth
        )
    return features


def parse_cameras(features: Mapping[str, Feature], *, path: Path) -> dict[str, Camera]:
    """Return the cameras among `features` by name, such as `top` for `observation.images.top`.

    Raises:
        DatasetError: The shape of an image has no recognizable height and width, or two cameras share a name.
    """
    cameras: dict[str, Camera] = {}
    for feature in features.values():
        if not feature.is_camera:
            continue
        name = feature.key.removeprefix(IMAGES).removeprefix(OBSERVATION)
        if name in cameras:
            raise DatasetError(
                f"{path}: `{cameras[name].key}` and `{feature.key}` both name the camera `{name}`; rename one"
            )
        height, width, channels = _image_size(feature, path)
        if max(height, width) > _MOST_PIXELS:
            raise DatasetError(
                f"{path}: camera `{feature.key}` has images of {height} x {width} pixels (height x width), more than "
                f"{_MOST_PIXELS:,} on a side; correct its shape"
            )
        unreadable = ""
        if feature.is_depth:
            unreadable = "contains depth"
        elif channels != 3:
            unreadable = f"has {channels} channel{'' if channels == 1 else 's'}"
        (source,) = feature.sources
        cameras[name] = Camera(name, source.key, Storage(feature.dtype), height, width, unreadable)
    return cameras


def _is_depth(entry: Mapping[str, Any]) -> bool:
    """Return whether LeRobot marks a feature as depth."""
    info = entry.get("info") or entry.get("video_info")
    flags = {**entry, **(info if isinstance(info, dict) else {})}
    return any(flags.get(name) is True for name in ("is_depth_map", "video.is_depth_map"))


def flat_names(feature: Feature) -> tuple[str, ...]:
    """Return one name per value; empty unless the dataset has a name for each."""
    return feature.names if feature.names is not None and len(feature.names) == feature.size else ()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flat_names(names: object) -> tuple[str, ...] | None:
    """Flatten names, which are a list or grouped: `{"motors": ["shoulder", "elbow"]}`."""
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
