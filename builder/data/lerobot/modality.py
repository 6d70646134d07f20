"""GR00T's `meta/modality.json`: named slices of packed columns, names of cameras, and columns of instructions.

    {"state": {"left_arm": {"start": 0, "end": 7}},
     "action": {"left_arm": {"start": 0, "end": 7, "original_key": "action"}},
     "video": {"ego_view": {"original_key": "observation.images.ego_view"}},
     "annotation": {"human.task": {"original_key": "annotation.human.task"}}}

`state.left_arm` can then be named in `data.columns`. In InternManip's style an entry has no `start` and `end`,
and is a column of its own: its `original_key`, or `state.left_arm`.

Format: https://github.com/NVIDIA/Isaac-GR00T, getting_started/data_preparation.md
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ....schemas.errors import DatasetError
from .features import ACTION, STATE, Feature, flat_names
from .files import read_json

_PACKED = {"state": STATE, "action": ACTION}


@dataclass(frozen=True, slots=True)
class Modality:
    """The content of a modality.json; empty for a dataset without one.

    Attributes:
        features: Slices and columns of states and actions, by names such as `state.left_arm`.
        rotations: Representation of those that are rotations, such as `quaternion`.
        instructions: Columns with the number of an instruction.
    """

    features: Mapping[str, Feature] = field(default_factory=dict)
    rotations: Mapping[str, str] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()

    def defaults(self, features: Mapping[str, Feature]) -> dict[str, list[str]]:
        """Return columns to join for a state or an action that the dataset lacks, in the order of the file."""
        found = {}
        for kind, key in _PACKED.items():
            names = [name for name in self.features if name.startswith(f"{kind}.")]
            if names and key not in features:
                found[key] = names
        return found


def read_modality(root: Path, features: Mapping[str, Feature]) -> Modality:
    """Read the modality.json of a dataset with these features, if it has one.

    Raises:
        DatasetError: It is no JSON, or names columns or dimensions that the dataset lacks.
    """
    path = root / "meta/modality.json"
    if not os.path.lexists(path):
        return Modality()
    content = read_json(path)
    found: dict[str, Feature] = {}
    rotations: dict[str, str] = {}
    for kind, packed in _PACKED.items():
        for name, entry in _section(content, kind, path).items():
            key = f"{kind}.{name}"
            found[key] = _feature(key, packed, entry, features, path)
            if rotation := entry.get("rotation_type"):
                rotations[key] = str(rotation)
    instructions = []
    for name, entry in _section(content, "annotation", path).items():
        column = str(entry.get("original_key") or f"annotation.{name}")
        if column in features and features[column].dtype.startswith("int"):
            instructions.append(column)
    return Modality(found, rotations, tuple(instructions))


def _section(content: Mapping[str, Any], kind: str, path: Path) -> Mapping[str, Mapping[str, Any]]:
    section = content.get(kind) or {}
    if not isinstance(section, dict) or not all(isinstance(v, dict | None) for v in section.values()):
        raise DatasetError(f"{path}: `{kind}` must map names to mappings; correct it")
    return {name: entry or {} for name, entry in section.items()}


def _feature(
    key: str, packed: str, entry: Mapping[str, Any], features: Mapping[str, Feature], path: Path
) -> Feature:
    start, end = entry.get("start"), entry.get("end")
    sliced = start is not None or end is not None
    given = entry.get("original_key")
    column = str(given) if given and given != key.partition(".")[0] else (packed if sliced else key)
    if column not in features:
        raise DatasetError(
            f"{path}: `{key}` is of the column `{column}`, which meta/info.json does not have; set its `original_key` to "
            f"one of {', '.join(f'`{name}`' for name in features)}"
        )
    if not sliced:
        return features[column]
    return sliced_feature(
        features[column], start or 0, features[column].size if end is None else end, path, key
    )


def sliced_feature(column: Feature, start: object, end: object, path: Path, name: str) -> Feature:
    """Return dimensions `start` to `end`, without the latter, of a column.

    Raises:
        DatasetError: The column has no such dimensions.
    """
    whole = type(start) is int and type(end) is int
    if not whole or not 0 <= start < end <= column.size or not column.is_numeric:  # type: ignore[operator]
        raise DatasetError(
            f"{path}: `{name}` has the dimensions {start} to {end} of `{column.key}`, which is {column.dtype} with "
            f"{column.size} values; use a range from 0 to {column.size}"
        )
    assert isinstance(start, int)
    assert isinstance(end, int)
    names = flat_names(column)[start:end] or tuple(f"{name}_{place}" for place in range(end - start))
    return replace(column, shape=(end - start,), names=names, start=start, whole=column)
