"""Writing of edited episodes: rows, videos and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ....schemas.errors import DatasetError
from ..frames.choice import FrameChoice
from ..frames.store import FrameStore, open_cameras
from ..lerobot.features import ACTION, Camera, Storage
from ..lerobot.files import open_parquet, reading
from ..lerobot.table import read_table
from ..selection import episode_columns
from ..writing.metadata import MEGABYTE, counter_features, dataset_info, video_feature, write_json
from ..writing.parquet import COUNTERS, DataFiles, write_episodes, write_tasks
from ..writing.statistics import ImageSummary, VectorSummary
from ..writing.video import CODEC, VideoFiles
from .pieces import Piece

_BLOCK = 64
"""Frames that are decoded at once."""
_OF_EVERY_EPISODE = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")
_MEGABYTES = 100, 200


@dataclass(frozen=True, slots=True)
class Edited:
    """Numbers of episodes and frames of a new set, and of the videos copied and encoded."""

    episodes: int
    frames: int
    copied: int
    encoded: int


def write_pieces(folder: Path, pieces: Sequence[Piece], renamed: Mapping[str, str]) -> Edited:
    """Write episodes of datasets with the same features to an empty directory, their tasks `renamed`."""
    source = pieces[0].source
    fps, keys = source.layout.fps, list(source.features)
    columns = [k for k in keys if source.features[k]["dtype"] != Storage.VIDEO]
    rows: list[dict[str, Any]] = [{} for _ in pieces]
    stats: dict[str, Any] = {}
    features = dict(source.features)
    copied = encoded = 0
    for camera in source.cameras:
        stats[camera.key], own_copied, own_encoded = _write_camera(folder, pieces, camera, rows)
        copied, encoded = copied + own_copied, encoded + own_encoded
        if own_encoded and not own_copied:
            features[camera.key] = video_feature(camera.height, camera.width, fps=fps, codec=CODEC)
    tasks: dict[str, int] = {}
    data: DataFiles | None = None
    total, frames_before = {k: VectorSummary() for k in (*columns, *COUNTERS)}, 0
    schema: pa.Schema | None = None
    final = []
    notes = _episode_notes(pieces)
    for number, piece in enumerate(pieces):
        table, texts = _rows(piece, columns, number, frames_before, tasks, renamed)
        if data is None or schema is None:
            schema = table.schema
            data = DataFiles(folder, schema, limit=_MEGABYTES[0] * MEGABYTE)
        row: dict[str, Any] = {"episode_index": number, "tasks": texts, "length": piece.used.length}
        row |= data.add(table.cast(schema))
        row |= {"dataset_from_index": frames_before, "dataset_to_index": frames_before + piece.used.length}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, **rows[number]}
        row |= {name: held.get((id(piece.source), piece.whole.index)) for name, held in notes.items()}
        for key, summary_of in total.items():
            if (values := _numbers(table[key])) is not None:
                if not np.isfinite(values).all():
                    raise DatasetError(
                        f"column `{key}` of episode {piece.whole.index} of {piece.source.layout.root} holds values that are "
                        f"not finite, of which there are no statistics; add `--drop {key}`, or delete the episode"
                    )
                own_numbers = VectorSummary()
                own_numbers.add(values)
                summary_of.add(values)
                row |= {f"stats/{key}/{k}": v for k, v in own_numbers.result().items()}
                stats[key] = None
        final.append(row)
        frames_before += piece.used.length
    assert data is not None
    data.close()
    stats = {key: value if value is not None else total[key].result() for key, value in stats.items()}
    info = dataset_info(
        {**features, **counter_features()},
        episodes=len(pieces),
        frames=frames_before,
        tasks=len(tasks),
        fps=source.info["fps"],
        robot_type=source.info.get("robot_type") or "unknown",
        megabytes=_MEGABYTES,
    )
    write_json(folder / "meta/info.json", info)
    write_json(folder / "meta/stats.json", stats)
    write_tasks(folder, list(tasks))
    write_episodes(folder, final)
    return Edited(len(pieces), frames_before, copied, encoded)


def _write_camera(
    folder: Path, pieces: Sequence[Piece], camera: Camera, rows: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], int, int]:
    """Write the videos of a camera, and add its places and statistics to the rows of the episodes.

    Return its statistics, and the numbers of videos copied and of episodes encoded again. Images in the rows
    have no videos.
    """
    summary, filmed = ImageSummary(), camera.storage is Storage.VIDEO
    fps = pieces[0].source.layout.fps
    files = VideoFiles(
        folder,
        camera.key,
        fps=int(fps),
        height=camera.height,
        width=camera.width,
        limit=_MEGABYTES[1] * MEGABYTE,
    )
    copied = encoded = 0
    for start, end, path in _runs(pieces, camera.name, camera.storage):
        place = files.copy(path) if path is not None else {}
        copied, encoded = copied + (path is not None), encoded + (path is None and filmed)
        for number in range(start, end):
            piece, own = pieces[number], ImageSummary()
            frames = _frames(piece, camera.name, (own, summary))
            if filmed and path is None:
                rows[number].update(files.add(frames))
            else:
                for _ in frames:
                    pass
            if path is not None:
                begin = piece.used.videos[camera.name].from_timestamp
                span = {"from_timestamp": begin, "to_timestamp": begin + piece.used.length / fps}
                rows[number].update({f"videos/{camera.key}/{k}": v for k, v in {**place, **span}.items()})
            rows[number].update({f"stats/{camera.key}/{k}": v for k, v in own.result().items()})
    files.close()
    return summary.result(), copied, encoded


def _runs(pieces: Sequence[Piece], camera: str, storage: Storage) -> Iterator[tuple[int, int, Path | None]]:
    """Yield ranges of pieces that make up a whole video, with its path; others one by one, without."""
    number = 0
    while number < len(pieces):
        piece = pieces[number]
        if storage is Storage.VIDEO:
            path = piece.used.videos[camera].path
            shared = [e for e in piece.source.layout.episodes if e.videos[camera].path == path]
            run = [(p.source, p.used) for p in pieces[number : number + len(shared)]]
            if run == [(piece.source, e) for e in shared]:
                yield number, number + len(shared), path
                number += len(shared)
                continue
        yield number, number + 1, None
        number += 1


def _frames(piece: Piece, camera: str, summaries: Sequence[ImageSummary]) -> Iterator[npt.NDArray[np.uint8]]:
    layout = piece.source.layout
    store: FrameStore = open_cameras(
        layout, layout.choose_cameras([camera]), [piece.used], FrameChoice("stream")
    )[camera]
    for start in range(0, piece.used.length, _BLOCK):
        block = store.read(range(start, min(start + _BLOCK, piece.used.length)))
        for summary in summaries:
            summary.add(block)
        yield from block


def _rows(
    piece: Piece,
    columns: Sequence[str],
    number: int,
    before: int,
    tasks: dict[str, int],
    renamed: Mapping[str, str],
) -> tuple[pa.Table, list[str]]:
    """Return the rows of an episode under its new number, and its instructions."""
    layout, used = piece.source.layout, piece.used
    if any(key == ACTION for key in layout.features):
        read_table(layout, [used], ())
    path = used.data_file
    wanted = list(dict.fromkeys([*columns, layout.task_column]))
    with open_parquet(path, columns=wanted) as file, reading(path):
        table = file.read(columns=wanted).slice(used.first_row, used.length)
    texts = []
    for old in table[layout.task_column].to_pylist():
        if old not in layout.tasks:
            raise DatasetError(f"{path} has the task_index {old} without a text; correct meta/tasks")
        texts.append(renamed.get(layout.tasks[old], layout.tasks[old]))
    index = [tasks.setdefault(text, len(tasks)) for text in texts]
    steps = np.arange(used.length)
    counters = {
        "timestamp": (steps / layout.fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(used.length, number),
        "index": before + steps,
        "task_index": np.asarray(index),
    }
    arrays = [table[key] for key in columns] + [pa.chunked_array([v]) for v in counters.values()]
    fields = [pa.field(key, table[key].type) for key in columns]
    fields += [pa.field(key, getattr(pa, kind)()) for key, kind in COUNTERS.items()]
    return pa.table(arrays, names=[f.name for f in fields]).cast(pa.schema(fields)), list(
        dict.fromkeys(texts)
    )


def _episode_notes(pieces: Sequence[Piece]) -> dict[str, dict[tuple[int, int], Any]]:
    """Return further columns of the episode tables, such as `success`: values by set and episode."""
    found: dict[str, dict[tuple[int, int], Any]] = {}
    for source in {id(piece.source): piece.source for piece in pieces}.values():
        for name, read in episode_columns(source.layout).items():
            if name not in _OF_EVERY_EPISODE:
                values = {(id(source), index): value for index, (value,) in read().items()}
                found.setdefault(name, {}).update(values)
    return found


def _numbers(column: Any) -> npt.NDArray[np.float64] | None:
    """Return a numeric column as a matrix (T, D); None for texts and images."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        values = values.flatten()
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(column), -1)


__all__ = ["Edited", "write_pieces"]
