"""Choice of episodes by what is known about them: `where: {success: true, length: [20, 400], task: "open *"}`.

A condition is a value, a list of texts of which one must match (`*` and `?` stand for any letters), or a range
`[least, most]` of numbers, where null is no limit. `length` counts frames, `task` is the instruction; other
names are columns of the episode table, or columns of the frames, whose last value in an episode counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ...schemas.errors import DatasetError
from ...schemas.wording import did_you_mean
from .lerobot.features import ACTION
from .lerobot.files import open_parquet, read_json_lines, reading
from .lerobot.layout import EpisodeInfo, Layout
from .lerobot.table import EpisodeTable, read_table
from .motion import idle_start

_MOST = 12


def matching(layout: Layout, where: Mapping[str, Any], episodes: Iterable[int]) -> tuple[int, ...]:
    """Return the `episodes` that fulfill all conditions.

    Raises:
        DatasetError: The dataset has no such column, or no episode fulfills the conditions.
    """
    chosen = layout.choose_episodes(tuple(episodes))
    for name, condition in where.items():
        known = _values(layout, name, chosen)
        fulfilled = [e for e in chosen if any(_fulfills(value, condition) for value in known[e.index])]
        if not fulfilled:
            found = ", ".join(
                map(str, list(dict.fromkeys(v for held in known.values() for v in held))[:_MOST])
            )
            raise DatasetError(
                f"no episode of {layout.root} has `{name}: {condition}`; the values are {found}; correct `where`"
            )
        chosen = tuple(fulfilled)
    return tuple(episode.index for episode in chosen)


def without_idle_starts(layout: Layout) -> Layout:
    """Return a layout whose episodes begin with the frame before the action first changes.

    An action changes if a dimension moves by more than half a percent of its range in the episode. Episodes
    that cannot be read are left as they are, and so are those in which nothing moves.
    """
    skipped = {}
    try:
        tables = [read_table(layout, layout.episodes, ())]
    except DatasetError:
        tables = list(_readable_tables(layout))
    for table in tables:
        for index, first, length in zip(table.episodes, table.first_rows, table.lengths, strict=True):
            actions = table.columns[ACTION][first : first + length]
            steps = idle_start(actions, np.maximum(np.ptp(actions, axis=0), 1e-9))
            if 0 < steps < length - 1:
                skipped[index] = steps
    return replace(layout, skipped=skipped)


def _readable_tables(layout: Layout) -> Iterator[EpisodeTable]:
    for episode in layout.episodes:
        with suppress(DatasetError):  # told when the episode is read to be used
            yield read_table(layout, [episode], ())


def _values(layout: Layout, name: str, episodes: Sequence[EpisodeInfo]) -> Mapping[int, Collection[Any]]:
    """Return the values of each episode by its index: one, or several tasks."""
    if name == "length":
        return {episode.index: (episode.length,) for episode in episodes}
    if name == "task":
        return {episode.index: episode.tasks or ("",) for episode in episodes}
    columns = episode_columns(layout)
    if name in columns:
        return columns[name]()
    if name in layout.features:
        return _last_values(name, episodes)
    known = ("length", "task", *columns, *layout.features)
    raise DatasetError(
        f"{layout.root} has no column `{name}` of episodes or frames; {did_you_mean(name, known, 'correct `where`')}"
    )


def episode_columns(layout: Layout) -> dict[str, Callable[[], Mapping[int, Collection[Any]]]]:
    """Return readers of the scalar columns of the episode table, by name."""
    readers: dict[str, Callable[[], Mapping[int, Collection[Any]]]] = {}
    for path in layout.metadata_files:
        if path.name == "episodes.jsonl":
            rows = read_json_lines(path)
            for name in dict.fromkeys(key for row in rows for key in row):
                readers[name] = partial(_of_rows, rows, name)
    tables = [path for path in layout.metadata_files if path.parent.parent.name == "episodes"]
    if tables:
        for name in open_parquet(tables[0]).schema_arrow.names:
            if not name.startswith(("stats/", "videos/", "data/", "meta/")):
                readers[name] = partial(_of_tables, tables, name)
    return readers


def _of_rows(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[int, Collection[Any]]:
    return {row["episode_index"]: (row.get(name),) for row in rows}


def _of_tables(paths: Sequence[Path], name: str) -> Mapping[int, Collection[Any]]:
    return {index: (value,) for path in paths for index, value in _pairs(path, name)}


def _pairs(path: Path, name: str) -> Iterable[tuple[int, Any]]:
    with reading(path):
        table = pq.read_table(path, columns=["episode_index", name])
        return zip(table["episode_index"].to_pylist(), table[name].to_pylist(), strict=True)


def _last_values(name: str, episodes: Sequence[EpisodeInfo]) -> Mapping[int, Collection[Any]]:
    """Return the value of a column in the last frame of each episode."""
    held: dict[Any, list[Any]] = {}
    found = {}
    for episode in episodes:
        path = episode.data_file
        if path not in held:
            with open_parquet(path, columns=[name]) as file, reading(path):
                held = {path: file.read(columns=[name])[name].to_pylist()}
        last = held[path][episode.first_row + episode.length - 1]
        found[episode.index] = (last[0] if isinstance(last, list) and len(last) == 1 else last,)
    return found


def _fulfills(value: Any, condition: Any) -> bool:
    if isinstance(condition, list):
        if len(condition) == 2 and all(c is None or _is_number(c) for c in condition):
            low, high = condition
            return _is_number(value) and (low is None or value >= low) and (high is None or value <= high)
        return any(_fulfills(value, one) for one in condition)
    if isinstance(value, str) and isinstance(condition, str):
        return fnmatchcase(value, condition)
    return (type(value) is type(condition) and bool(value == condition)) or (
        _is_number(value) and _is_number(condition) and value == condition
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["episode_columns", "matching", "without_idle_starts"]
