"""Parquet files of a LeRobot v3.0 dataset: frames, tasks and episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
FILES_PER_CHUNK = 1000
COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Types of the columns that every dataset has."""


class FileNumbers:
    """Counter of files, a thousand per chunk."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def current(self) -> dict[str, int]:
        """`chunk_index` and `file_index` of the current file."""
        chunk, file = divmod(self._count - 1, FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    def next(self) -> dict[str, int]:
        """Begin another file and return its numbers."""
        self._count += 1
        return self.current


def vector_schema(vectors: Mapping[str, int]) -> pa.Schema:
    """Return the columns of float32 vectors, given their sizes D by key, and the counters."""
    return pa.schema(
        [(key, pa.list_(pa.float32(), size)) for key, size in vectors.items()]
        + [(key, getattr(pa, kind)()) for key, kind in COUNTERS.items()]
    )


def vector_table(columns: Mapping[str, NDArray[Any]], schema: pa.Schema) -> pa.Table:
    """Return an episode of vectors (T, D) and counters (T,) as a table of this schema."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if field.name in COUNTERS:
            arrays.append(pa.array(values, type=field.type))
        else:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=pa.float32())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
    return pa.Table.from_arrays(arrays, schema=schema)


class DataFiles:
    """Writer of frames to numbered parquet files of about `limit` bytes each, one row group per episode."""

    def __init__(self, root: Path, schema: pa.Schema, *, limit: int) -> None:
        self._root, self._schema, self._limit = root, schema, limit
        self._files = FileNumbers()
        self._path = root
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table) -> dict[str, int]:
        """Append the rows of an episode, and return the columns that locate it."""
        if self._writer is not None and self._path.stat().st_size > self._limit:
            self.close()
        if self._writer is None:
            self._path = self._root / DATA_PATH.format(**self._files.next())
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, self._schema)
        self._writer.write_table(rows)
        return {f"data/{name}": value for name, value in self._files.current.items()}

    def close(self) -> None:
        """Finish the current file, if any."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """Write the instructions in the order of their index, as the pandas frame that LeRobot reads."""
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    )
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    number = {"pandas_type": "int64", "numpy_type": "int64"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number, "metadata": None},
            {"name": "task", "field_name": "task", **text, "metadata": None},
        ],
        "pandas_version": "2.2.0",
    }
    _write(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), root / TASKS_PATH)


def write_episodes(root: Path, episodes: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per episode, all with the same columns of numbers, strings or nested lists."""
    columns = {name: pa.array([episode[name] for episode in episodes]) for name in episodes[0]}
    _write(pa.table(columns), root / EPISODES_PATH)


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
