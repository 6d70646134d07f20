"""Edits of datasets, always into a new one.

    edit(["datasets/monday", "datasets/tuesday"], "datasets/week", Edits(delete="3,7-9"))

The order is fixed: columns are dropped, the sets merged, episodes chosen, their ends trimmed, tasks renamed.
Statistics are computed anew. A video of which every episode stays whole and in order is copied; others are encoded again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ....schemas.errors import DatasetError
from ....schemas.wording import did_you_mean
from ..fingerprint import fingerprint
from ..frames.choice import FrameChoice
from ..frames.store import FrameStore, open_cameras
from ..lerobot.columns import BOOKKEEPING
from ..lerobot.features import ACTION, Camera, Storage
from ..lerobot.files import open_parquet, read_json, reading
from ..lerobot.layout import EpisodeInfo, Layout, read_layout
from ..lerobot.table import read_table
from ..selection import episode_columns
from ..writing.metadata import MEGABYTE, counter_features, dataset_info, video_feature, write_json
from ..writing.parquet import COUNTERS, DataFiles, write_episodes, write_tasks
from ..writing.staging import require_empty, staged
from ..writing.statistics import ImageSummary, VectorSummary
from ..writing.video import CODEC, VideoFiles

_BLOCK = 64
"""Frames that are decoded at once."""
_OF_EVERY_EPISODE = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")
_MEGABYTES = 100, 200
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Edits:
    """What changes; episodes are texts such as `0,3,7-9`.

    Attributes:
        drop: Columns and cameras to leave out.
        keep: Episodes to keep; None for all.
        delete: Episodes to leave out.
        trim_start: Number of frames to leave out at the start of each episode.
        trim_end: The same at its end.
        tasks: New instruction by the old one.
    """

    drop: tuple[str, ...] = ()
    keep: str | None = None
    delete: str | None = None
    trim_start: int = 0
    trim_end: int = 0
    tasks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edited:
    """Numbers of episodes and frames of a new set, and of the videos copied and encoded."""

    episodes: int
    frames: int
    copied: int
    encoded: int


@dataclass(frozen=True)
class _Source:
    layout: Layout
    info: Mapping[str, Any]
    features: Mapping[str, Any]
    cameras: tuple[Camera, ...]


@dataclass(frozen=True)
class _Piece:
    source: _Source
    whole: EpisodeInfo
    used: EpisodeInfo


def edit(paths: Sequence[str | Path], output: str | Path, edits: Edits) -> Edited:
    """Write the edited episodes of one or several sets of a robot to the directory `output`.

    Raises:
        DatasetError: A set cannot be read, the sets differ in columns, cameras or rate, an edit names what
            does not exist or leaves nothing, or `output` is not empty.
    """
    output = Path(output)
    require_empty(output)
    sources = [_source(path, edits.drop) for path in paths]
    for other in sources[1:]:
        _require_alike(sources[0], other)
    pieces = [_trimmed(piece, edits) for piece in _chosen(sources, edits)]
    _require_tasks(pieces, edits.tasks)
    with staged(output) as folder:
        done = _write(folder, pieces, edits)
        write_json(folder / "meta/edit.json", _provenance(sources, pieces, edits))
    return done


def episode_numbers(text: str, option: str) -> list[int]:
    """Return the numbers in a text such as `0,3,7-9`.

    Raises:
        DatasetError: It is no such text.
    """
    found: list[int] = []
    for word in text.split(","):
        match = _RANGE.fullmatch(word.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise DatasetError(
                f"`{option} {text}` names no episodes; write numbers and ranges, as in 0,3,7-9"
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def _source(path: str | Path, drop: Sequence[str]) -> _Source:
    layout = read_layout(path)
    info = read_json(layout.root / "meta/info.json")
    raw = info["features"]
    keys = {camera.name: camera.key for camera in layout.cameras.values()}
    dropped = {keys.get(name, name) for name in drop}
    for name, key in ((name, keys.get(name, name)) for name in drop):
        if key not in raw or key in BOOKKEEPING:
            known = [k for k in raw if k not in BOOKKEEPING]
            raise DatasetError(
                f"{layout.root} has no column `{name}` to drop; {did_you_mean(name, known, f'it has {known}')}"
            )
    features = {key: entry for key, entry in raw.items() if key not in dropped and key not in BOOKKEEPING}
    if layout.fps != int(layout.fps):
        raise DatasetError(
            f"{layout.root} has {layout.fps:g} frames per second; only sets with a whole number are edited, so convert it"
        )
    stale = [k for k in layout.modality.instructions if k in features]
    if stale:
        raise DatasetError(
            f"{layout.root}: `{stale[0]}` holds numbers of tasks, which change in a new set; add `--drop {stale[0]}`"
        )
    cameras = tuple(camera for camera in layout.cameras.values() if camera.key in features)
    return _Source(layout, info, features, layout.choose_cameras([camera.name for camera in cameras]))


def _require_alike(one: _Source, other: _Source) -> None:
    roots = f"{one.layout.root} and {other.layout.root}"
    if one.layout.fps != other.layout.fps:
        raise DatasetError(
            f"{roots} have {one.layout.fps:g} and {other.layout.fps:g} frames per second; merge sets of one rate"
        )
    for key in dict.fromkeys([*one.features, *other.features]):
        here, there = (
            _kind(source.features[key]) if key in source.features else "missing" for source in (one, other)
        )
        if here != there:
            raise DatasetError(
                f"{roots} differ in the column `{key}`: {here} and {there}; drop it, or merge sets of one robot"
            )


def _kind(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']} {list(entry['shape'])} {entry.get('names') or ''}".strip()


def _chosen(sources: Sequence[_Source], edits: Edits) -> list[_Piece]:
    """Return the chosen episodes, numbered on from set to set; those of one set have its own numbers."""
    listed = [_Piece(source, e, e) for source in sources for e in source.layout.episodes]
    numbers = [piece.whole.index for piece in listed] if len(sources) == 1 else range(len(listed))
    known = dict(zip(numbers, listed, strict=True))
    kept = dict.fromkeys(known)
    for option, text in (("--keep", edits.keep), ("--delete", edits.delete)):
        if text is None:
            continue
        named = episode_numbers(text, option)
        if absent := [number for number in named if number not in known]:
            raise DatasetError(
                f"`{option} {text}`: there is no episode {absent[0]}; choose among {min(known)} to {max(known)}"
            )
        inside = option == "--keep"
        kept = dict.fromkeys(number for number in kept if (number in set(named)) is inside)
    if not kept:
        raise DatasetError("no episode would be left; keep at least one")
    return [known[number] for number in kept]


def _trimmed(piece: _Piece, edits: Edits) -> _Piece:
    used, cut = piece.whole, edits.trim_start + edits.trim_end
    if not cut:
        return piece
    if cut >= used.length:
        raise DatasetError(
            f"episode {used.index} of {piece.source.layout.root} has {used.length} frames, of which {cut} would be "
            "trimmed; trim fewer, or delete it"
        )
    used = replace(used, length=used.length - edits.trim_end)
    if edits.trim_start:
        used = used.without_start(edits.trim_start, piece.source.layout.fps)
    return replace(piece, used=used)


def _require_tasks(pieces: Sequence[_Piece], tasks: Mapping[str, str]) -> None:
    known = list(dict.fromkeys(text for piece in pieces for text in piece.source.layout.tasks.values()))
    for task in tasks:
        if task not in known:
            raise DatasetError(
                f"no set has the task `{task}`; {did_you_mean(task, known, f'tasks are {known}')}"
            )


def _write(folder: Path, pieces: Sequence[_Piece], edits: Edits) -> Edited:
    source = pieces[0].source
    fps, keys = source.layout.fps, list(source.features)
    columns = [k for k in keys if source.features[k]["dtype"] != Storage.VIDEO]
    filmed = [c for c in source.cameras if c.storage is Storage.VIDEO]
    rows: list[dict[str, Any]] = [{} for _ in pieces]
    stats: dict[str, Any] = {}
    features = dict(source.features)
    copied = encoded = 0
    for camera in source.cameras:
        summary = ImageSummary()
        files = VideoFiles(
            folder,
            camera.key,
            fps=int(fps),
            height=camera.height,
            width=camera.width,
            limit=_MEGABYTES[1] * MEGABYTE,
        )
        for start, end, path in _runs(pieces, camera.name, camera.storage):
            place = files.copy(path) if path is not None else {}
            copied, encoded = copied + (path is not None), encoded + (path is None and camera in filmed)
            for number in range(start, end):
                piece, own = pieces[number], ImageSummary()
                frames = _frames(piece, camera.name, (own, summary))
                if camera in filmed and path is None:
                    rows[number] |= files.add(frames)
                else:
                    for _ in frames:
                        pass
                    if path is not None:
                        begin = piece.used.videos[camera.name].from_timestamp
                        span = {"from_timestamp": begin, "to_timestamp": begin + piece.used.length / fps}
                        rows[number] |= {f"videos/{camera.key}/{k}": v for k, v in {**place, **span}.items()}
                rows[number] |= {f"stats/{camera.key}/{k}": v for k, v in own.result().items()}
        files.close()
        stats[camera.key] = summary.result()
        if camera in filmed and encoded and not copied:
            features[camera.key] = video_feature(camera.height, camera.width, fps=fps, codec=CODEC)
    tasks: dict[str, int] = {}
    data: DataFiles | None = None
    total, frames_before = {k: VectorSummary() for k in (*columns, *COUNTERS)}, 0
    schema: pa.Schema | None = None
    final = []
    notes = _episode_notes(pieces)
    for number, piece in enumerate(pieces):
        table, texts = _rows(piece, columns, number, frames_before, tasks, edits.tasks)
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


def _runs(pieces: Sequence[_Piece], camera: str, storage: Storage) -> Iterator[tuple[int, int, Path | None]]:
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


def _frames(piece: _Piece, camera: str, summaries: Sequence[ImageSummary]) -> Iterator[npt.NDArray[np.uint8]]:
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
    piece: _Piece,
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


def _episode_notes(pieces: Sequence[_Piece]) -> dict[str, dict[tuple[int, int], Any]]:
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


def _provenance(sources: Sequence[_Source], pieces: Sequence[_Piece], edits: Edits) -> dict[str, Any]:
    listed = []
    for source in sources:
        own = [piece for piece in pieces if piece.source is source]
        listed.append(
            {
                "name": source.layout.root.name,
                "codebase_version": source.layout.codebase_version,
                "episodes": [piece.whole.index for piece in own],
                "fingerprint": fingerprint(
                    source.layout, [p.whole for p in own], [c.name for c in source.cameras]
                ),
            }
        )
    return {"sources": listed, "edits": asdict(edits), "policysmith": version("policysmith")}


__all__ = ["Edited", "Edits", "edit", "episode_numbers"]
