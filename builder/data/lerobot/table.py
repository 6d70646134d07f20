"""The numeric columns of chosen episodes as contiguous arrays."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ....schemas.errors import DatasetError
from .columns import mapping_hint, unread_columns
from .features import ACTION, TASK_INDEX, Feature
from .files import open_parquet, reading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from .layout import EpisodeInfo, Layout

_BOOKKEEPING = ("episode_index", "frame_index", TASK_INDEX)
_TIME = "timestamp"
_TIME_FEATURE = Feature(_TIME, "float32", (1,), None)
_TOLERANCE = 0.1
"""Tolerance of a time stamp, in frames at the dataset's fps."""
_ROWS_AT_ONCE = 50_000
"""Rows of small files that are converted together."""
_THREADS, _FILES_AT_ONCE = 8, 32
"""Threads, and number of files per task, as a task for each would cost as much as reading it."""


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """Rows of the chosen episodes, one after the other; N rows in all.

    Attributes:
        columns: Float32 arrays (N, D) of `action` and numeric `observation.*`.
        task_index: Int64 array (N,).
        episodes: Index of each episode, in the order of the rows.
        lengths: Number of frames of each episode.
        first_rows: First row of each episode.
        skipped: Number of frames that are left out at the start of each episode.
    """

    columns: Mapping[str, npt.NDArray[np.float32]]
    task_index: npt.NDArray[np.int64]
    episodes: tuple[int, ...]
    lengths: tuple[int, ...]
    first_rows: tuple[int, ...]
    skipped: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of frames, N."""
        return int(self.task_index.shape[0])

    def locate(self, row: int) -> tuple[int, int]:
        """Return the episode index of a row, and the frame within the episode."""
        position = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return self.episodes[position], row - self.first_rows[position] + self.skipped[position]


def read_table(
    layout: Layout, episodes: Sequence[EpisodeInfo], vectors: Collection[str] | None = None
) -> EpisodeTable:
    """Read `action` and the numeric columns `vectors` (None: all) of `episodes`, each parquet file once.

    Values of more than one dimension are flattened row by row.

    Raises:
        DatasetError: A file is missing or damaged, lacks a column, or disagrees with the metadata about an
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
            f"{layout.root / 'meta/info.json'} has no numeric feature `action`, only "
            f"{', '.join(f'`{key}`' for key in layout.features)}; if one of them holds the actions, "
            f"{mapping_hint(ACTION, unread_columns(layout.features))}"
        )
    skipped = np.asarray([episode.skipped for episode in episodes])
    rows_in_file: dict[Path, int] = {}
    for episode in layout.episodes:
        rows_in_file[episode.data_file] = rows_in_file.get(episode.data_file, 0) + episode.length
    for episode in episodes:
        if episode.first_row + episode.length > rows_in_file[episode.data_file]:
            raise _misplaced(episode)
    columns = _read_columns(episodes, features, rows_in_file, layout.task_column)
    lengths = tuple(episode.length for episode in episodes)
    if len(columns.get(_TIME, ())) not in (0, sum(lengths)):
        raise DatasetError(
            f"{layout.root}: some data files have a column `{_TIME}` and others do not; convert the dataset again"
        )
    table = EpisodeTable(
        columns={feature.key: columns[feature.key] for feature in features},
        task_index=columns["task_index"],
        episodes=tuple(episode.index for episode in episodes),
        lengths=lengths,
        first_rows=tuple(np.cumsum((0, *lengths[:-1])).tolist()),
        skipped=tuple(skipped.tolist()),
    )
    _check_rows(table, episodes, columns["episode_index"], columns["frame_index"])
    if _TIME in columns:
        _check_times(table, episodes, columns[_TIME], layout.fps)
    return table


def _read_columns(
    episodes: Sequence[EpisodeInfo],
    features: Sequence[Feature],
    rows_in_file: Mapping[Path, int],
    task_column: str,
) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of all episodes, one after the other."""
    positions: dict[Path, list[int]] = {}
    for position, episode in enumerate(episodes):
        positions.setdefault(episode.data_file, []).append(position)
    pieces: dict[str, list[npt.NDArray[Any] | None]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for paths in _groups(positions, rows_in_file):
            tables = pool.map(
                lambda some: [_read_file(path, features, rows_in_file[path], task_column) for path in some],
                [paths[start : start + _FILES_AT_ONCE] for start in range(0, len(paths), _FILES_AT_ONCE)],
            )
            read = dict(zip(paths, chain.from_iterable(tables), strict=True))
            for first_rows, arrays in _converted(read, features):
                for path, first_row in first_rows.items():
                    for position in positions[path]:
                        episode = episodes[position]
                        start = first_row + episode.first_row
                        for key, values in arrays.items():
                            if key not in pieces:
                                pieces[key] = [None] * len(episodes)
                            pieces[key][position] = values[start : start + episode.length]
    return {
        key: np.concatenate([piece for piece in parts if piece is not None]) for key, parts in pieces.items()
    }


def _groups(paths: Iterable[Path], rows_in_file: Mapping[Path, int]) -> Iterator[list[Path]]:
    """Group files whose rows are converted at once, as formats v2.x have one small file per episode."""
    group: list[Path] = []
    rows = 0
    for path in paths:
        group.append(path)
        rows += rows_in_file[path]
        if rows >= _ROWS_AT_ONCE:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _converted(
    tables: Mapping[Path, pa.Table], features: Sequence[Feature]
) -> Iterator[tuple[dict[Path, int], dict[str, npt.NDArray[Any]]]]:
    """Yield arrays and the first row of each file in them: of all files, or one by one if they differ."""
    first, *others = tables.values()
    if others and all(table.schema.equals(first.schema) for table in others):
        rows = [table.num_rows for table in tables.values()]
        first_rows = dict(zip(tables, accumulate(rows, initial=0), strict=False))
        with suppress(DatasetError):  # one by one, the file at fault is named
            yield first_rows, _arrays(pa.concat_tables(tables.values()), features, next(iter(tables)))
            return
    for path, table in tables.items():
        yield {path: 0}, _arrays(table, features, path)


def _read_file(path: Path, features: Sequence[Feature], expected_rows: int, task_column: str) -> pa.Table:
    sources = (part.column.key for feature in features for part in feature.sources)
    counters = [task_column if name == TASK_INDEX else name for name in _BOOKKEEPING]
    wanted = [*counters, *dict.fromkeys(sources)]
    with open_parquet(path, columns=wanted) as file, reading(path):
        if file.metadata.num_rows != expected_rows:
            raise DatasetError(
                f"{path} has {file.metadata.num_rows} rows, but the episode lengths in the metadata add up to "
                f"{expected_rows}; the file or the metadata is out of date, so download or convert the dataset again"
            )
        timed = [_TIME] if _TIME in file.schema_arrow.names and _TIME not in wanted else []
        table = file.read(columns=[*wanted, *timed], use_threads=False)
        return table.rename_columns(
            [TASK_INDEX if name == task_column else name for name in table.column_names]
        )


def _arrays(table: pa.Table, features: Sequence[Feature], path: Path) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    with reading(path):
        for key in _BOOKKEEPING:
            if table[key].null_count or not pa.types.is_integer(table[key].type):
                raise DatasetError(
                    f"{path}: column `{key}` must hold one integer per row; it is {table[key].type}"
                )
            arrays[key] = table[key].to_numpy().astype(np.int64)
        if _TIME in table.column_names:
            arrays[_TIME] = _to_float32(table[_TIME], _TIME_FEATURE, path)[:, 0].astype(np.float64)
        sources = dict.fromkeys(part for feature in features for part in feature.sources)
        wholes = dict.fromkeys(part.column for part in sources)
        read = {whole: _to_float32(table[whole.key], whole, path) for whole in wholes}
    for feature in features:
        parts = [_slice(read[part.column], part) for part in feature.sources]
        arrays[feature.key] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return arrays


def _slice(values: npt.NDArray[np.float32], part: Feature) -> npt.NDArray[np.float32]:
    if part.whole is None:
        return values
    return np.ascontiguousarray(values[:, part.start : part.start + part.size])


def _to_float32(column: Any, feature: Feature, path: Path) -> npt.NDArray[np.float32]:
    """Flatten a (nested) list column to an array (rows, D)."""
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
            raise _shape_error(path, feature, f"lists of sizes {sizes}")
        found.append(int(sizes[0]))
        values = values.flatten()
    if not (_is_number(values.type) or pa.types.is_boolean(values.type)):
        raise _shape_error(path, feature, f"values of type {column.type}")
    if tuple(found or [1]) != feature.shape and math.prod(found) * math.prod(feature.shape) != 1:
        raise _shape_error(path, feature, f"values of shape {found or [1]}")
    with np.errstate(
        over="ignore"
    ):  # values beyond float32 become infinite, and are reported with their place
        flat = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return np.ascontiguousarray(flat.reshape(rows, feature.size))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _shape_error(path: Path, feature: Feature, found: str) -> DatasetError:
    return DatasetError(
        f"{path}: column `{feature.key}` holds {found}, but meta/info.json specifies {feature.dtype} of shape "
        f"{list(feature.shape)}; correct info.json or convert the dataset again"
    )


def _frames(table: EpisodeTable) -> npt.NDArray[np.int64]:
    """Return the frame number of each row within its episode (N,)."""
    starts = np.asarray(table.first_rows) - np.asarray(table.skipped)
    frames: npt.NDArray[np.int64] = np.arange(table.rows) - np.repeat(starts, table.lengths)
    return frames


def _episode_of(table: EpisodeTable, row: int) -> int:
    return int(np.searchsorted(table.first_rows, row, side="right")) - 1


def _misplaced(episode: EpisodeInfo) -> DatasetError:
    return DatasetError(
        f"{episode.data_file}: rows {episode.first_row} to {episode.first_row + episode.length - 1} should belong to "
        f"episode {episode.index}, but their `episode_index` differs; the length in the metadata is wrong, so download "
        "or convert the dataset again"
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
            f"{episode.length - 1}; rows are missing or out of order, so convert the dataset again"
        )


def _check_times(
    table: EpisodeTable, episodes: Sequence[EpisodeInfo], times: npt.NDArray[np.float64], fps: float
) -> None:
    due = _frames(table) / fps
    slack = _TOLERANCE / fps + 4 * np.spacing(due.astype(np.float32))  # times are stored in float32
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
        why = f"the times advance at {rate:.4g} frames per second, so correct `fps` in meta/info.json"
    elif off[rows].all():
        why = "the times of the episode do not start at 0"
    else:
        why = "frames were dropped, duplicated or reordered, or the times were recorded unevenly"
    raise DatasetError(
        f"{episode.data_file}: frame {row - first} of episode {episode.index} has the `timestamp` {times[row]:.6g} s, but "
        f"is due at {due[row]:.6g} s at the {fps:g} fps of meta/info.json; {why}. If the frames are evenly spaced "
        "nevertheless, set the column to frame_index / fps; else convert the dataset again or leave out the episode"
    )
