"""A v3.0 dataset of very many episodes, without videos on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH, EPISODES_A_FILE, FPS = 2, 1000, 10


def write_many(root: Path, count: int) -> Path:
    """Write `count` episodes of two frames, with one camera whose videos are missing."""
    video = "videos/observation.images.front"
    numbers = {"dtype": "float32", "shape": [3], "names": None}
    features = {
        "action": numbers,
        "observation.state": numbers,
        "observation.images.front": {
            "dtype": "video",
            "shape": [8, 8, 3],
            "names": ["height", "width", "channels"],
        },
    }
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features}
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    pq.write_table(pa.table({"task_index": [0], "task": ["go"]}), root / "meta/tasks.parquet")
    episode = np.arange(count)
    place = {"chunk_index": np.zeros(count, int), "file_index": episode // EPISODES_A_FILE}
    columns = {
        "episode_index": episode,
        "tasks": [["go"]] * count,
        "length": np.full(count, LENGTH),
        "dataset_from_index": episode * LENGTH,
        **{f"data/{name}": values for name, values in place.items()},
        **{f"{video}/{name}": values for name, values in place.items()},
        f"{video}/from_timestamp": episode % EPISODES_A_FILE * LENGTH / FPS,
    }
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    for number, first in enumerate(range(0, count, EPISODES_A_FILE)):
        owner = np.repeat(episode[first : first + EPISODES_A_FILE], LENGTH)
        frame = np.tile(np.arange(LENGTH), len(owner) // LENGTH)
        values = pa.array(np.zeros(3 * len(owner), np.float32))
        vector = pa.FixedSizeListArray.from_arrays(values, 3)
        rows = {"action": vector, "observation.state": vector, "timestamp": (frame / FPS).astype(np.float32)}
        rows |= {"frame_index": frame, "episode_index": owner, "task_index": np.zeros(len(owner), int)}
        pq.write_table(pa.table(rows), root / f"data/chunk-000/file-{number:03d}.parquet")
    return root
