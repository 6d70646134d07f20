"""The numeric columns of chosen episodes as contiguous arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ....schemas.errors import DatasetError
from .columns import cure, unread_columns
from .features import ACTION, Feature
from .files import open_parquet, reading

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from .layout import EpisodeInfo, Layout

_BOOKKEEPING = ("episode_index", "frame_index", "task_index")
_TIME = "timestamp"
_TIME_FEATURE = Feature(_TIME, "float32", (1,), None)
_TOLERANCE = 0.1
"""Tolerance, in frames, of a time against the frame's place at the dataset's fps."""


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """Rows of the chosen episodes, one after the other; N rows in all.

    `columns` holds float32 arrays (N, D) for `action` and every numeric `observation.*`, `task_index` is an
    int64 array (N,). `episodes`, `lengths` and `first_rows` describe the episodes in the order of the rows.
    """

    columns: Mapping[str, npt.NDArray[np.float32]]
    task_index: npt.NDArray[np.int64]
    episodes: tuple[int, ...]
    lengths: tuple[int, ...]
    first_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The number of frames, N."""
        return int(self.task_index.shape[0])

    def locate(self, row: int) -> tuple[int, int]:
        """The episode index and the frame within it of a row of this table."""
        position = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return self.episodes[position], row - self.first_rows[position]


def read_table(
    layout: Layout, episodes: Sequence[EpisodeInfo], vectors: Collection[str] | None = None
) -> EpisodeTable:
    """Read `action` and the numeric columns `vectors` (None: all) of `episodes`, each parquet file once.

    Values of more than one dimension are flattened row by row.

    Raises:
        DatasetError: a file is missing or damaged, lacks a column, or disagrees with the metadata about an
            episode's length, its times or a column's shape.
    """
    features = [
        feature
        for feature in layout.features.values()
        if feature.is_policy_input_or_target
        and (vectors is None or feature.key == ACTION or feature.key in vectors)
    ]
    if not any(feature.key == ACTION for feature in features):
        raise DatasetError(
            f"{layout.root / 'meta/info.json'} has no numeric feature `action`; it has "
            f"{', '.join(f'`{key}`' for key in layout.features)}. Where one of them holds the actions, "
            f"{cure(ACTION, unread_columns(layout.features))}"
        )
    rows_in_file: dict[Path, int] = {}
    for episode in layout.episodes:
        rows_in_file[episode.data_file] = rows_in_file.get(episode.data_file, 0) + episode.length

    pieces: dict[str, list[npt.NDArray[Any]]] = {}
    held: tuple[Path, dict[str, npt.NDArray[Any]]] | None = None
    for episode in episodes:
        if held is None or held[0] != episode.data_file:
            held = episode.data_file, _read_file(episode.data_file, features, rows_in_file[episode.data_file])
        end = episode.first_row + episode.length
        if end > rows_in_file[episode.data_file]:
            raise _misplaced(episode)
        for key, values in held[1].items():
            pieces.setdefault(key, []).append(values[episode.first_row : end])
    lengths = tuple(episode.length for episode in episodes)
    columns = {key: np.concatenate(parts) for key, parts in pieces.items()}
    if len(columns.get(_TIME, ())) not in (0, sum(lengths)):
        raise DatasetError(
            f"{layout.root}: some data files have a column `{_TIME}` and others have none. Convert the dataset again"
        )
    table = EpisodeTable(
        columns={feature.key: columns[feature.key] for feature in features},
        task_index=columns["task_index"],
        episodes=tuple(episode.index for episode in episodes),
        lengths=lengths,
        first_rows=tuple(np.cumsum((0, *lengths[:-1])).tolist()),
    )
    _check_rows(table, episodes, columns["episode_index"], columns["frame_index"])
    if _TIME in columns:
        _check_times(table, episodes, columns[_TIME], layout.fps)
    return table


def _read_file(path: Path, features: Sequence[Feature], expected_rows: int) -> dict[str, npt.NDArray[Any]]:
    sources = list(dict.fromkeys(part for feature in features for part in feature.sources))
    wanted = [*_BOOKKEEPING, *(part.key for part in sources)]
    with open_parquet(path, columns=wanted) as file, reading(path):
        if file.metadata.num_rows != expected_rows:
            raise DatasetError(
                f"{path} has {file.metadata.num_rows} rows, but the episode lengths in the metadata add up to "
                f"{expected_rows}. The file or the metadata is out of date: download or convert the dataset again"
            )
        timed = [_TIME] if _TIME in file.schema_arrow.names and _TIME not in wanted else []
        table = file.read(columns=[*wanted, *timed], use_threads=False)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for key in _BOOKKEEPING:
            if table[key].null_count or not pa.types.is_integer(table[key].type):
                raise DatasetError(
                    f"{path}: column `{key}` must hold one integer a row; it is {table[key].type}"
                )
            arrays[key] = table[key].to_numpy().astype(np.int64)
        if _TIME in table.column_names:
            arrays[_TIME] = _to_float32(table[_TIME], _TIME_FEATURE, path)[:, 0].astype(np.float64)
        read = {part: _to_float32(table[part.key], part, path) for part in sources}
    for feature in features:
        parts = [read[part] for part in feature.sources]
        arrays[feature.key] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return arrays


def _to_float32(column: Any, feature: Feature, path: Path) -> npt.NDArray[np.float32]:
    """Flatten a (nested) list column to (rows, D)."""
    rows = len(column)
    values: Any = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    found: list[int] = []
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if not _is_list(values.type):
            break
        if pa.types.is_fixed_size_list(values.type) and not values.null_count:
            sizes = [values.type.list_size]
        else:
            sizes = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(sizes) != 1 or sizes[0] is None:
            raise _shape_error(path, feature, f"lists of the sizes {sizes}")
        found.append(int(sizes[0]))
        values = values.flatten()
    if not (_is_number(values.type) or pa.types.is_boolean(values.type)):
        raise _shape_error(path, feature, f"values of the type {column.type}")
    if tuple(found or [1]) != feature.shape and math.prod(found) * math.prod(feature.shape) != 1:
        raise _shape_error(path, feature, f"values of the shape {found or 'of one number'}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is reported with its place
        flat = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return np.ascontiguousarray(flat.reshape(rows, feature.size))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _shape_error(path: Path, feature: Feature, found: str) -> DatasetError:
    return DatasetError(
        f"{path}: column `{feature.key}` holds {found}, but meta/info.json says {feature.dtype} of the shape "
        f"{list(feature.shape)}. Correct info.json or convert the dataset again"
    )


def _frames(table: EpisodeTable) -> npt.NDArray[np.int64]:
    """The number of each row within its episode."""
    frames: npt.NDArray[np.int64] = np.arange(table.rows) - np.repeat(table.first_rows, table.lengths)
    return frames


def _episode_of(table: EpisodeTable, row: int) -> int:
    return int(np.searchsorted(table.first_rows, row, side="right")) - 1


def _misplaced(episode: EpisodeInfo) -> DatasetError:
    return DatasetError(
        f"{episode.data_file}: rows {episode.first_row} to {episode.first_row + episode.length - 1} should be "
        f"episode {episode.index}, but their `episode_index` says otherwise: its length in the metadata is wrong. "
        "Download or convert the dataset again"
    )


def _check_rows(
    table: EpisodeTable,
    episodes: Sequence[EpisodeInfo],
    indices: npt.NDArray[np.int64],
    frames: npt.NDArray[np.int64],
) -> None:
    for wrong in np.flatnonzero(indices != np.repeat(table.episodes, table.lengths))[:1]:
        raise _misplaced(episodes[_episode_of(table, int(wrong))])
    for wrong in np.flatnonzero(frames != _frames(table))[:1]:
        episode = episodes[_episode_of(table, int(wrong))]
        raise DatasetError(
            f"{episode.data_file}: `frame_index` of episode {episode.index} does not count from 0 to "
            f"{episode.length - 1}. Rows are missing or out of order: convert the dataset again"
        )


def _check_times(
    table: EpisodeTable, episodes: Sequence[EpisodeInfo], times: npt.NDArray[np.float64], fps: float
) -> None:
    due = _frames(table) / fps
    slack = _TOLERANCE / fps + 4 * np.spacing(due.astype(np.float32))  # times are kept in float32
    off = ~(np.abs(times - due) <= slack)
    if not off.any():
        return
    row = int(np.argmax(off))
    position = _episode_of(table, row)
    episode, first = episodes[position], table.first_rows[position]
    rows = slice(first, first + episode.length)
    steps = np.diff(times[rows])
    rate = 1.0 / float(np.median(steps)) if len(steps) and np.median(steps) > 0.0 else fps
    if abs(rate - fps) > 0.02 * fps:
        why = f"The times advance at {rate:.4g} frames per second: correct `fps` in meta/info.json"
    elif off[rows].all():
        why = "The times do not begin at 0 with the episode"
    else:
        why = "Frames were dropped, doubled or put out of order, or the times were not recorded evenly"
    raise DatasetError(
        f"{episode.data_file}: frame {row - first} of episode {episode.index} has the `timestamp` {times[row]:.6g} s, but "
        f"is due at {due[row]:.6g} s by the {fps:g} fps of meta/info.json. {why}; if the frames are evenly spaced all the "
        "same, set the column to frame_index / fps, else convert the dataset again or leave the episode out"
    )
