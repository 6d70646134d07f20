"""The metadata of a LeRobot v3.0 dataset, `meta/info.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parquet import COUNTERS, DATA_PATH, FILES_PER_CHUNK
from .video import PIXEL_FORMAT, VIDEO_PATH

MEGABYTE = 2**20


def write_json(path: Path, content: Any) -> None:
    """Write `content` to a file, and make its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def dataset_info(
    features: Mapping[str, Any],
    *,
    episodes: int,
    frames: int,
    tasks: int,
    fps: float,
    robot_type: str,
    megabytes: tuple[int, int],
) -> dict[str, Any]:
    """Return the content of `meta/info.json`; `megabytes` limit the size of parquet and mp4 files."""
    filmed = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": megabytes[0],
        "video_files_size_in_mb": megabytes[1],
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if filmed else None,
        "features": dict(features),
    }


def video_feature(height: int, width: int, *, fps: float, codec: str) -> dict[str, Any]:
    """Return the entry of a camera that is stored as video."""
    video = {"height": height, "width": width, "codec": codec, "pix_fmt": PIXEL_FORMAT}
    video |= {"is_depth_map": False, "fps": fps, "channels": 3}
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {**{f"video.{name}": value for name, value in video.items()}, "has_audio": False},
    }


def counter_features() -> dict[str, Any]:
    """Return the entries of the columns that every dataset has."""
    return {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in COUNTERS.items()}


__all__ = ["MEGABYTE", "counter_features", "dataset_info", "video_feature", "write_json"]
