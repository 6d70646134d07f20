"""Reads the episode and task tables of a LeRobot dataset, formats v2.0, v2.1 and v3.0.

v2.x keeps one parquet file and one mp4 per camera for each episode. v3.0 packs many episodes into each file
and records where each one begins: a row range in the parquet, a time range in the mp4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...schemas.errors import DatasetError
from .features import Storage
from .files import open_parquet, read_json_lines, read_parquet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .features import Camera

V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Where an episode's frames begin: `from_timestamp` is in seconds from the start of the mp4 at `path`."""

    path: Path
    from_timestamp: float


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """One episode: `length` frames, in rows `first_row .. first_row + length - 1` of `data_file`.

    `start` is the dataset-wide index of its first frame. `videos` has one span for each camera stored as
    video, by camera name.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    start: int
    data_file: Path
    first_row: int
    videos: Mapping[str, VideoSpan]


@dataclass(frozen=True, slots=True)
class Tables:
    """The episodes in order, the task texts by `task_index`, and the metadata files they were read from."""

    episodes: tuple[EpisodeInfo, ...]
    tasks: Mapping[int, str]
    files: tuple[Path, ...]


def read_tables_v2(root: Path, info: Mapping[str, Any], cameras: Mapping[str, Camera]) -> Tables:
    """Read `meta/episodes.jsonl` and `meta/tasks.jsonl`.

    Raises:
        DatasetError: a table is missing or damaged, or lacks a field.
    """
    episodes_path, tasks_path = root / "meta/episodes.jsonl", root / "meta/tasks.jsonl"
    rows = sorted(
        (_row(entry, episodes_path) for entry in read_json_lines(episodes_path)),
        key=lambda row: row["episode_index"],
    )
    chunk_size = int(info.get("chunks_size") or 1000)
    data_path, video_path = info.get("data_path") or V2_DATA, info.get("video_path") or V2_VIDEO
    episodes, start = [], 0
    for row in rows:
        index = row["episode_index"]
        fields = {"episode_index": index, "episode_chunk": index // chunk_size}
        videos = {
            camera.name: VideoSpan(_expand(root, video_path, video_key=camera.key, **fields), 0.0)
            for camera in cameras.values()
            if camera.storage is Storage.VIDEO
        }
        data_file = _expand(root, data_path, **fields)
        episodes.append(EpisodeInfo(index, row["length"], _tasks_of(row), start, data_file, 0, videos))
        start += row["length"]
    tasks = {}
    for entry in read_json_lines(tasks_path):
        if not isinstance(entry.get("task_index"), int) or not isinstance(entry.get("task"), str):
            raise DatasetError(f"{tasks_path}: every line needs a `task_index` and a `task`, found {entry}")
        tasks[entry["task_index"]] = entry["task"]
    return Tables(tuple(episodes), tasks, (episodes_path, tasks_path))


def read_tables_v3(root: Path, info: Mapping[str, Any], cameras: Mapping[str, Camera]) -> Tables:
    """Read `meta/episodes/chunk-*/file-*.parquet` and `meta/tasks.parquet`.

    Raises:
        DatasetError: a table is missing or damaged, or lacks a column.
    """
    paths = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DatasetError(
            f"{root / 'meta/episodes'} has no chunk-*/file-*.parquet, which format v3.0 needs. Download it again"
        )
    filmed = {name: camera for name, camera in cameras.items() if camera.storage is Storage.VIDEO}
    places = ("chunk_index", "file_index")
    columns = ["episode_index", "length", "dataset_from_index", *(f"data/{place}" for place in places)]
    for camera in filmed.values():
        columns += [f"videos/{camera.key}/{field}" for field in (*places, "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for path in paths:
        optional = ["tasks"] if "tasks" in open_parquet(path).schema_arrow.names else []
        rows += (_row(entry, path) for entry in read_parquet(path, columns=[*columns, *optional]).to_pylist())
    rows.sort(key=lambda row: row["episode_index"])

    data_path, video_path = info.get("data_path") or V3_DATA, info.get("video_path") or V3_VIDEO
    files = [_expand(root, data_path, **{place: row[f"data/{place}"] for place in places}) for row in rows]
    file_start: dict[Path, int] = {}
    for row, data_file in zip(rows, files, strict=True):
        file_start[data_file] = min(
            file_start.get(data_file, row["dataset_from_index"]), row["dataset_from_index"]
        )
    episodes, start = [], 0
    for row, data_file in zip(rows, files, strict=True):
        videos = {}
        for camera in filmed.values():
            where = {place: row[f"videos/{camera.key}/{place}"] for place in places}
            video = _expand(root, video_path, video_key=camera.key, **where)
            videos[camera.name] = VideoSpan(video, float(row[f"videos/{camera.key}/from_timestamp"]))
        first_row = row["dataset_from_index"] - file_start[data_file]
        episodes.append(
            EpisodeInfo(
                row["episode_index"], row["length"], _tasks_of(row), start, data_file, first_row, videos
            )
        )
        start += row["length"]
    tasks_path = root / "meta/tasks.parquet"
    return Tables(tuple(episodes), _read_tasks_v3(tasks_path), (*paths, tasks_path))


def _read_tasks_v3(path: Path) -> dict[int, str]:
    """The task text is the pandas index of the table, so its column's name varies."""
    names: list[str] = open_parquet(path, columns=["task_index"]).schema_arrow.names
    known = [name for name in ("task", "__index_level_0__") if name in names]
    text = next(iter([*known, *(name for name in names if name != "task_index")]), None)
    if text is None:
        raise DatasetError(f"{path} has no column with the task texts. Download or convert the dataset again")
    table = read_parquet(path, columns=["task_index", text])
    return {row["task_index"]: str(row[text]) for row in table.to_pylist()}


def _row(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check the two fields that every format has; none may be null."""
    index, length = entry.get("episode_index"), entry.get("length")
    if not isinstance(index, int) or not isinstance(length, int):
        raise DatasetError(
            f"{path}: every episode needs an `episode_index` and a `length`, found {index}, {length}"
        )
    if length < 1:
        raise DatasetError(f"{path}: episode {index} has the length {length}. Remove the empty episode")
    empty = [field for field, value in entry.items() if value is None]
    if empty:
        raise DatasetError(
            f"{path}: episode {index} has no value for `{empty[0]}`. Download or convert it again"
        )
    return entry


def _tasks_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    tasks = row.get("tasks", ())
    return (tasks,) if isinstance(tasks, str) else tuple(str(task) for task in tasks)


def _expand(root: Path, template: str, **fields: int | str) -> Path:
    """Fill a path template of `info.json`; the result must stay inside the dataset."""
    try:
        relative = PurePosixPath(template.format(**fields))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{root / 'meta/info.json'}: the path template `{template}` cannot be filled in: {error!r}"
        ) from error
    if relative.is_absolute() or ".." in relative.parts:
        raise DatasetError(
            f"{root / 'meta/info.json'}: the path template `{template}` leaves the dataset's directory"
        )
    return root / relative
