"""Edits of datasets, always into a new one.

    edit(["datasets/monday", "datasets/tuesday"], "datasets/week", Edits(delete="3,7-9"))

The order is fixed: columns are dropped, the sets merged, episodes chosen, their ends trimmed, tasks renamed.
Statistics are computed anew. A video of which every episode stays whole and in order is copied; others are encoded again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ....schemas.errors import DatasetError
from ....schemas.wording import did_you_mean
from ..fingerprint import fingerprint
from ..lerobot.columns import BOOKKEEPING
from ..lerobot.files import read_json
from ..lerobot.layout import read_layout
from ..writing.metadata import write_json
from ..writing.staging import require_empty, staged
from .pieces import Piece, Source
from .write import Edited, write_pieces

_MODALITY = "meta/modality.json"
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


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
        done = write_pieces(folder, pieces, edits.tasks)
        if (modality := sources[0].layout.root / _MODALITY).exists():
            shutil.copy(modality, folder / _MODALITY)
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


def _source(path: str | Path, drop: Sequence[str]) -> Source:
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
    if drop and (layout.root / _MODALITY).exists():
        raise DatasetError(
            f"{layout.root} has {_MODALITY}, which names its columns; edit it without `--drop`"
        )
    stale = [k for k in layout.modality.instructions if k in features]
    if stale:
        raise DatasetError(
            f"{layout.root}: `{stale[0]}` holds numbers of tasks, which change in a new set; add `--drop {stale[0]}`"
        )
    cameras = tuple(camera for camera in layout.cameras.values() if camera.key in features)
    return Source(layout, info, features, layout.choose_cameras([camera.name for camera in cameras]))


def _require_alike(one: Source, other: Source) -> None:
    roots = f"{one.layout.root} and {other.layout.root}"
    if one.layout.fps != other.layout.fps:
        raise DatasetError(
            f"{roots} have {one.layout.fps:g} and {other.layout.fps:g} frames per second; merge sets of one rate"
        )
    for key in dict.fromkeys([*one.features, *other.features]):
        here, there = (_kind(source, key) for source in (one, other))
        if here != there:
            raise DatasetError(
                f"{roots} differ in the column `{key}`: {here} and {there}; drop it, or merge sets of one robot"
            )


def _kind(source: Source, key: str) -> str:
    camera = next((camera for camera in source.cameras if camera.key == key), None)
    if camera is not None:
        return f"{camera.storage} {camera.height} x {camera.width}"
    if (entry := source.features.get(key)) is None:
        return "missing"
    return f"{entry['dtype']} {list(entry['shape'])} {entry.get('names') or ''}".strip()


def _chosen(sources: Sequence[Source], edits: Edits) -> list[Piece]:
    """Return the chosen episodes, numbered on from set to set; those of one set have its own numbers."""
    listed = [Piece(source, e, e) for source in sources for e in source.layout.episodes]
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


def _trimmed(piece: Piece, edits: Edits) -> Piece:
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


def _require_tasks(pieces: Sequence[Piece], tasks: Mapping[str, str]) -> None:
    known = list(dict.fromkeys(text for piece in pieces for text in piece.source.layout.tasks.values()))
    for task in tasks:
        if task not in known:
            raise DatasetError(
                f"no set has the task `{task}`; {did_you_mean(task, known, f'tasks are {known}')}"
            )


def _provenance(sources: Sequence[Source], pieces: Sequence[Piece], edits: Edits) -> dict[str, Any]:
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
