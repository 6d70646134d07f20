"""Episode and task tables of a LeRobot dataset, formats v2.0, v2.1 and v3.0.

v2.x has one parquet file and one mp4 per camera for each episode. v3.0 packs many episodes into each file and
records where each one begins: a row range in the parquet file, a time range in the mp4.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ....schemas.errors import DatasetError
from .features import Storage
from .files import open_parquet, read_json_lines, read_rows, reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .features import Camera

V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_V2_FIELDS, _V3_FIELDS = ("episode_chunk", "episode_index"), ("chunk_index", "file_index")
_MOST = 2**31 - 1
"""Upper bound of an index, number or length."""
_LONGEST = 1_000
_WIDTH = re.compile(r"(0?[1-9])?d?")


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Start of an episode's frames, `from_timestamp` seconds after the start of the mp4 at `path`."""

    path: Path
    from_timestamp: float


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """One episode: `length` frames, in rows `first_row .. first_row + length - 1` of `data_file`.

    Attributes:
        start: Index of its first frame in the whole dataset.
        videos: Span of each camera stored as video, by camera name.
        skipped: Number of frames at its start that are left out.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    start: int
    data_file: Path
    first_row: int
    videos: Mapping[str, VideoSpan]
    skipped: int = 0

    def without_start(self, frames: int, fps: float) -> EpisodeInfo:
        """Return the episode without its first frames."""
        later = {
            name: VideoSpan(span.path, span.from_timestamp + frames / fps)
            for name, span in self.videos.items()
        }
        return replace(
            self,
            length=self.length - frames,
            start=self.start + frames,
            first_row=self.first_row + frames,
            videos=later,
            skipped=self.skipped + frames,
        )


@dataclass(frozen=True, slots=True)
class Tables:
    """The episodes in order, the task texts by `task_index`, and the files that they were read from."""

    episodes: tuple[EpisodeInfo, ...]
    tasks: Mapping[int, str]
    files: tuple[Path, ...]


def read_tables_v2(root: Path, info: Mapping[str, Any], cameras: Mapping[str, Camera]) -> Tables:
    """Read `meta/episodes.jsonl` and `meta/tasks.jsonl`.

    Raises:
        DatasetError: A table is missing or damaged, or lacks a field.
    """
    episodes_path, tasks_path = root / "meta/episodes.jsonl", root / "meta/tasks.jsonl"
    rows = sorted(
        (_row(entry, episodes_path) for entry in read_json_lines(episodes_path)),
        key=lambda row: row["episode_index"],
    )
    info_path = root / "meta/info.json"
    chunk_size = info.get("chunks_size", 1000)
    if type(chunk_size) is not int or not 0 < chunk_size <= _MOST:
        raise DatasetError(
            f"{info_path} has the chunks_size {_short(chunk_size)}; it must be a whole number above 0"
        )
    data_path = _Template(root, info.get("data_path") or V2_DATA, _V2_FIELDS)
    video_path = _Template(root, info.get("video_path") or V2_VIDEO, (*_V2_FIELDS, "video_key"))
    filmed = [camera for camera in cameras.values() if camera.storage is Storage.VIDEO]
    episodes, start = [], 0
    for row in rows:
        index = row["episode_index"]
        chunk = index // chunk_size
        videos = {camera.name: VideoSpan(video_path.fill(chunk, index, camera.key), 0.0) for camera in filmed}
        data_file = data_path.fill(chunk, index)
        tasks = _tasks_of(row, episodes_path)
        episodes.append(EpisodeInfo(index, row["length"], tasks, start, data_file, 0, videos))
        start += row["length"]
    texts: dict[int, str] = {}
    for entry in read_json_lines(tasks_path):
        _add_task(texts, entry.get("task_index"), entry.get("task"), tasks_path)
    return Tables(tuple(episodes), texts, (episodes_path, tasks_path))


def read_tables_v3(root: Path, info: Mapping[str, Any], cameras: Mapping[str, Camera]) -> Tables:
    """Read `meta/episodes/chunk-*/file-*.parquet` and `meta/tasks.parquet`.

    Raises:
        DatasetError: A table is missing or damaged, or lacks a column.
    """
    paths = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DatasetError(
            f"{root / 'meta/episodes'} has no chunk-*/file-*.parquet, which format v3.0 needs; download it again"
        )
    filmed = {name: camera for name, camera in cameras.items() if camera.storage is Storage.VIDEO}
    columns = ["episode_index", "length", "dataset_from_index", *(f"data/{place}" for place in _V3_FIELDS)]
    for camera in filmed.values():
        columns += _video_columns(camera)
    rows = list(chain.from_iterable(_rows_v3(path, columns) for path in paths))
    rows.sort(key=lambda row: row["episode_index"])

    data_path = _Template(root, info.get("data_path") or V3_DATA, _V3_FIELDS)
    video_path = _Template(root, info.get("video_path") or V3_VIDEO, (*_V3_FIELDS, "video_key"))
    files = [data_path.fill(row["data/chunk_index"], row["data/file_index"]) for row in rows]
    file_start: dict[Path, int] = {}
    for row, data_file in zip(rows, files, strict=True):
        first = row["dataset_from_index"]
        if first < file_start.setdefault(data_file, first):
            file_start[data_file] = first
    keys = [(name, camera.key, *_video_columns(camera)) for name, camera in filmed.items()]
    episodes, start = [], 0
    for row, data_file in zip(rows, files, strict=True):
        videos = {
            name: VideoSpan(video_path.fill(row[chunk], row[file], key), float(row[begin]))
            for name, key, chunk, file, begin in keys
        }
        first_row = row["dataset_from_index"] - file_start[data_file]
        tasks = _tasks_of(row, paths[0])
        episodes.append(
            EpisodeInfo(row["episode_index"], row["length"], tasks, start, data_file, first_row, videos)
        )
        start += row["length"]
    tasks_path = root / "meta/tasks.parquet"
    return Tables(tuple(episodes), _read_tasks_v3(tasks_path), (*paths, tasks_path))


def _video_columns(camera: Camera) -> list[str]:
    return [f"videos/{camera.key}/{field}" for field in (*_V3_FIELDS, "from_timestamp")]


def _rows_v3(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the checked rows of one file of the episode table.

    Clean columns are checked as a whole. The rows of any others are checked one by one, which names the fault.
    """
    present = open_parquet(path).schema_arrow.names
    wanted = [*columns, *(name for name in ("tasks",) if name in present)]
    with open_parquet(path, columns=columns) as file, reading(path):
        table = file.read(columns=wanted)
        clean = all(_is_clean(name, table[name]) for name in columns)
        values = [
            table[name].to_numpy().tolist() if clean and name in columns else table[name].to_pylist()
            for name in wanted
        ]
    rows = [dict(zip(wanted, row, strict=True)) for row in zip(*values, strict=True)]
    return rows if clean and None not in values[-1] else [_row(row, path) for row in rows]


def _is_clean(name: str, column: Any) -> bool:
    """Return whether all values of a column have the type and the range that `_row` asks for."""
    if column.null_count or not len(column):
        return False
    if name.endswith("/from_timestamp"):
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            return False
        return bool((np.abs(column.to_numpy()) <= _MOST).all())
    if not pa.types.is_integer(column.type):
        return False
    values = column.to_numpy()
    low = 1 if name == "length" else 0
    return bool(values.min() >= low and values.max() <= _MOST)


def _read_tasks_v3(path: Path) -> dict[int, str]:
    """Read the task texts, which are the pandas index, so that the name of their column varies."""
    names: list[str] = open_parquet(path, columns=["task_index"]).schema_arrow.names
    known = [name for name in ("task", "__index_level_0__") if name in names]
    text = next(iter([*known, *(name for name in names if name != "task_index")]), None)
    if text is None:
        raise DatasetError(f"{path} has no column with the task texts; download or convert the dataset again")
    texts: dict[int, str] = {}
    for row in read_rows(path, columns=["task_index", text]):
        _add_task(texts, row["task_index"], row[text], path)
    return texts


def _add_task(texts: dict[int, str], index: object, text: object, path: Path) -> None:
    if type(index) is not int or not isinstance(text, str):
        raise DatasetError(
            f"{path}: every task needs a whole `task_index` and a text, found {_short(index)} and {_short(text)}; "
            "correct the table or convert the dataset again"
        )
    if texts.setdefault(index, text) != text:
        raise DatasetError(f"{path} has two texts for the task_index {_short(index)}; remove one")


def _row(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check the fields that are read and return the row."""
    index, length = entry.get("episode_index"), entry.get("length")
    if type(index) is not int or type(length) is not int:
        raise DatasetError(
            f"{path}: every episode needs an `episode_index` and a `length`, found {_short(index)}, {_short(length)}"
        )
    if not 0 <= index <= _MOST or length > _MOST:
        raise DatasetError(
            f"{path}: an episode has the index {_short(index)} and the length {_short(length)}; both must be below "
            f"{_MOST:,}; correct the table or convert the dataset again"
        )
    if length < 1:
        raise DatasetError(f"{path}: episode {index} has the length {length}; remove the empty episode")
    for field, value in entry.items():
        if field in ("episode_index", "length"):
            continue
        if value is None:
            raise DatasetError(
                f"{path}: episode {index} has no value for `{field}`; download or convert it again"
            )
        whole = field.endswith(("/chunk_index", "/file_index")) or field == "dataset_from_index"
        if (whole and not (type(value) is int and 0 <= value < 2**53)) or (
            field.endswith("/from_timestamp")
            and not (isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _MOST)
        ):
            raise DatasetError(
                f"{path}: episode {index} has the value {_short(value)} for `{field}`; download or convert it again"
            )
    return entry


def _tasks_of(row: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    tasks = row.get("tasks", ())
    listed = [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(listed, list | tuple) or not all(isinstance(task, str) for task in listed):
        raise DatasetError(
            f"{path}: episode {row['episode_index']} has the tasks {_short(tasks)}, which is not a list of texts; "
            "correct the table or convert the dataset again"
        )
    return tuple(listed)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Template:
    """A path template of `info.json`, limited to the given fields and to zero-padded whole numbers."""

    def __init__(self, root: Path, template: object, fields: tuple[str, ...]) -> None:
        """Check a template.

        Raises:
            DatasetError: It has other fields or formats, or leaves the dataset.
        """
        self._root, info_path = str(root), root / "meta/info.json"
        if not isinstance(template, str):
            raise DatasetError(
                f"{info_path}: a path template must be a string, found {_short(template)}; correct it"
            )
        fault = _template_fault(template, fields)
        if fault:
            raise DatasetError(f"{info_path}: the path template `{_short(template)[1:-1]}` {fault}")
        self._template, self._fields = template, fields
        self._filled: dict[tuple[int | str, ...], Path] = {}

    def fill(self, *values: int | str) -> Path:
        """Return the path of a file in the dataset, with a value for each field."""
        if values not in self._filled:
            fields = dict(zip(self._fields, values, strict=True))
            self._filled[values] = Path(f"{self._root}/{self._template.format(**fields)}")
        return self._filled[values]


def _template_fault(template: str, fields: tuple[str, ...]) -> str:
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        return f"is invalid: {error}"
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if name not in fields:
            return f"has the unknown field `{name[:40]}`; use {' and '.join(fields)}"
        if conversion or (spec and (name == "video_key" or not _WIDTH.fullmatch(spec))):
            return f"has the unsupported format `{(spec or '')[:40]}`; use zero padding at most, as in `{{{name}:03d}}`"
    fixed = PurePosixPath("".join(text + ("" if name is None else "0") for text, name, _, _ in pieces))
    if fixed.is_absolute() or ".." in fixed.parts:
        return "points outside the dataset; correct it"
    if len(template) > _LONGEST:
        return f"is longer than {_LONGEST:,} characters; correct it"
    return "" if template.isprintable() else "contains control characters; correct it"
