"""Mapping of a dataset's columns to the features of a policy: renamed, concatenated, or dropped.

    map_columns(features, {"action": ["action.arm", "action.gripper"], "observation.effort": None},
    path=info_path)

`observation.state[0:7]` names the first seven dimensions of a column. Columns on the right are no longer available under their own names. Joined columns are concatenated in the
order of the list; a column of several dimensions is flattened row by row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ....schemas.errors import DatasetError, SpecError
from ....schemas.specs import IMAGES
from ....schemas.wording import did_you_mean, near
from .features import ACTION, OBSERVATION, STATE, Feature, flat_names
from .modality import sliced_feature

Columns = Mapping[str, str | Sequence[str] | None]
NO_SLICES: Mapping[str, Feature] = MappingProxyType({})
_SLICE = re.compile(r"(.+)\[(\d{1,6})?:(\d{1,6})?\]")
BOOKKEEPING = frozenset(("timestamp", "frame_index", "episode_index", "index", "task_index"))
_SYNONYMS = {ACTION: ("actions", "action"), STATE: ("state", "states", "observation.states", "proprio")}


def map_columns(
    features: Mapping[str, Feature],
    columns: Columns | None,
    *,
    path: Path,
    slices: Mapping[str, Feature] = NO_SLICES,
) -> dict[str, Feature]:
    """Return the features of a dataset, whose info.json is `path`, under the names in `columns`.

    `slices` are parts of columns that have names of their own.

    Raises:
        DatasetError: With the first of `column_faults`.
    """
    if not columns:
        return dict(features)
    for fault in column_faults(features, columns, slices):
        raise DatasetError(f"{path}: {fault}")
    found = {name: _find(name, features, slices, path) for s in columns.values() for name in _listed(s)}
    used = {feature.column.key for feature in found.values() if feature is not None}
    mapped = {key: feature for key, feature in features.items() if key not in used and key not in columns}
    for key, source in columns.items():
        if source is not None:
            mapped[key] = _concatenated(key, [f for name in _listed(source) if (f := found[name])])
    return mapped


def column_faults(
    features: Mapping[str, Feature], columns: Columns, slices: Mapping[str, Feature] = NO_SLICES
) -> Iterator[SpecError]:
    """Yield the faults of `columns`; the `field` of each is a key, or a key and a position in its list."""
    for key, source in columns.items():
        if source is None:
            if key not in features:
                yield _unknown(key, features, key)
            continue
        if key != ACTION and not key.startswith(OBSERVATION):
            yield SpecError(
                f"`{key}` is not a feature that a policy reads",
                field=key,
                label=did_you_mean(key, (ACTION, STATE), "not read", cutoff=0.5),
                help=f"columns become `{ACTION}`, `{STATE}`, `{OBSERVATION}<name>` or `{IMAGES}<camera>`",
            )
            continue
        names = _listed(source)
        for position, name in enumerate(names):
            field = key if isinstance(source, str) else f"{key}.{position}"
            try:
                feature = _find(name, features, slices)
            except DatasetError as error:
                yield SpecError(str(error), field=field, label="no such dimensions")
                continue
            if feature is None:
                yield _unknown(name, {**features, **slices}, field)
            elif names.index(name) < position:
                yield SpecError(f"`{key}` names the column `{name}` twice", field=field, label="duplicate")
            elif reason := _unfit(key, feature, len(names)):
                yield SpecError(
                    f"column `{name}` is {describe(feature)}, {reason}",
                    field=field,
                    label="does not fit",
                )


def unread_columns(features: Mapping[str, Feature]) -> dict[str, str]:
    """Describe the columns that are neither cameras, nor features of a policy, nor LeRobot's bookkeeping."""
    return {
        key: describe(feature)
        for key, feature in features.items()
        if not (feature.is_camera or feature.is_policy_input_or_target or key in BOOKKEEPING)
    }


def describe(feature: Feature) -> str:
    """Return `float32 [7]`, or `float32 [8] from `a` and `b`` for a mapped feature."""
    text = f"{feature.dtype} [{', '.join(map(str, feature.shape))}]"
    origins = [f"`{part.origin}`" for part in feature.parts]
    return f"{text} from {' and '.join(origins)}" if origins else text


def mapping_hint(key: str, unread: Mapping[str, str]) -> str:
    """Return a phrase that suggests how to map the missing feature `key` from the columns `unread`."""
    if not unread:
        return f"choose a dataset that has `{key}`"
    known = [name for name in _SYNONYMS.get(key, ()) if name in unread]
    split = sorted(name for name in unread if name.startswith((f"{key}.", f"{key}s.")))
    meant = next(iter(known), None) or near(key, unread, 0.5)
    if meant is None and split:
        return f"join its parts in the order of the robot, `columns: {{{key}: [{', '.join(split)}]}}`"
    return f"map one or more columns, `columns: {{{key}: {meant or '<column>'}}}`"


def _find(
    name: str,
    features: Mapping[str, Feature],
    slices: Mapping[str, Feature],
    path: Path = Path("meta/info.json"),
) -> Feature | None:
    """Return a column, a named slice, or the slice `column[start:end]`; None if there is none.

    Raises:
        DatasetError: The column has no such dimensions.
    """
    if name in features or name in slices:
        return features.get(name) or slices[name]
    match = _SLICE.fullmatch(name)
    if match is None or match[1] not in features:
        return None
    column = features[match[1]]
    start, end = int(match[2] or 0), int(match[3]) if match[3] else column.size
    return sliced_feature(column, start, end, path, name)


def _listed(source: str | Sequence[str] | None) -> list[str]:
    if source is None:
        return []
    return [source] if isinstance(source, str) else list(source)


def _unknown(name: str, features: Mapping[str, Feature], field: str) -> SpecError:
    own = {key: describe(feature) for key, feature in features.items() if key not in BOOKKEEPING}
    return SpecError(
        f"the dataset has no column `{name}`",
        field=field,
        label=did_you_mean(name, own, "no such column"),
        help=f"it has: {', '.join(f'`{key}` {text}' for key, text in own.items()) or 'none'}",
    )


def _unfit(key: str, feature: Feature, count: int) -> str:
    if key.startswith(IMAGES):
        if not feature.is_camera:
            return "not images"
        return "and cameras cannot be joined" if count > 1 else ""
    return "" if feature.is_numeric else "not numbers"


def _concatenated(key: str, parts: Sequence[Feature]) -> Feature:
    if len(parts) == 1:
        return replace(parts[0], key=key, parts=tuple(parts), start=0, whole=None)
    sizes = [math.prod(part.shape) for part in parts]
    names = tuple(
        name
        for part, size in zip(parts, sizes, strict=True)
        for name in flat_names(part)
        or tuple(f"{part.key}_{i}" if size > 1 else part.key for i in range(size))
    )
    return Feature(key, parts[0].dtype, (sum(sizes),), names, tuple(parts))
