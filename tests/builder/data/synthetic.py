"""Writes small LeRobot datasets of each format version, whose frames carry their own number as light and dark blocks."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from policysmith.builder.data.writing.writer import LeRobotWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HEIGHT, WIDTH, BLOCK = 32, 64, 16
FPS = 10
TASKS = ("push the block", "open the drawer")
VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass
class Synthetic:
    """A dataset written to `root`; arrays have one row per frame."""

    root: Path
    lengths: tuple[int, ...]
    columns: dict[str, np.ndarray]
    task_index: np.ndarray
    cameras: tuple[str, ...] = ("top", "wrist")
    starts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = tuple(int(start) for start in np.cumsum((0, *self.lengths[:-1])))

    def code(self, camera: str, frame: int) -> int:
        """Return the number shown by the picture of a frame."""
        return frame + 128 * self.cameras.index(camera)


def picture(code: int) -> np.ndarray:
    """Return an RGB image (H, W, 3) whose eight blocks are the bits of `code`, most significant first."""
    bits = np.array([(code >> shift) & 1 for shift in range(7, -1, -1)]).reshape(2, 4)
    grey = np.kron(20 + 210 * bits, np.ones((BLOCK, BLOCK))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_code(image: np.ndarray) -> int:
    """Return the number shown by a decoded image (3, H, W)."""
    assert image.shape == (3, HEIGHT, WIDTH)
    means = image.reshape(3, 2, BLOCK, 4, BLOCK).mean(axis=(0, 2, 4)).reshape(-1)
    return int(sum(1 << (7 - place) for place, mean in enumerate(means) if mean > 128))


def encode(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    rate: int = FPS,
    start: int = 0,
    options: dict[str, str] | None = None,
) -> None:
    """Write an h264 video with long groups of pictures and B-frames; `options` go to the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": "20", "preset": "veryfast", "g": "12"}
        )
        for position, image in enumerate(images):
            if position == 0:
                stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "yuv420p"
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = start + position
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_dataset(
    root: Path, version: str, *, lengths: Sequence[int] = (7, 5, 9, 3, 6), image_camera: bool = False
) -> Synthetic:
    """Write a dataset with the cameras `top` and `wrist`; `wrist` is stored as PNG images if `image_camera`."""
    for name, content in _contents(version, tuple(lengths), image_camera).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return _synthetic(root, tuple(lengths))


@cache
def _contents(version: str, lengths: tuple[int, ...], image_camera: bool) -> dict[str, bytes]:
    """Encode each kind of dataset once for all tests."""
    with TemporaryDirectory() as folder:
        data = _synthetic(Path(folder), lengths)
        write_json(data.root / "meta/info.json", _info(version, data, image_camera))
        (_write_v3 if version == "v3.0" else _write_v2)(data, image_camera)
        files = [path for path in data.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(data.root)): path.read_bytes() for path in files}


def _synthetic(root: Path, lengths: tuple[int, ...]) -> Synthetic:
    total, generator = sum(lengths), np.random.default_rng(0)
    columns = {
        "observation.state": generator.normal(size=(total, 3)).astype(np.float32),
        "observation.environment_state": generator.normal(size=(total, 4)).astype(np.float32),
        "observation.touch": (np.arange(total) % 3 == 0).astype(np.float32)[:, None],
        "action": generator.normal(size=(total, 2)).astype(np.float32),
    }
    task_index = np.repeat(np.arange(len(lengths)) % 2, lengths)
    change = sum(lengths[:2]) + 4
    task_index[change : change + 1] = 1
    return Synthetic(root, lengths, columns, task_index)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def rewrite_parquet(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _info(version: str, data: Synthetic, image_camera: bool) -> dict[str, Any]:
    v3 = version == "v3.0"
    names = ["height", "width", "channels"]
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "gripper"]}},
        "observation.environment_state": {"dtype": "float32", "shape": [4], "names": None},
        "observation.touch": {"dtype": "bool", "shape": [1], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
        "observation.images.top": {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": names},
        "observation.images.wrist": {
            "dtype": "image" if image_camera else "video",
            "shape": [3, HEIGHT, WIDTH],
            "names": ["channels", "height", "width"],
        },
    }
    features |= {
        key: {"dtype": "float32" if key == "timestamp" else "int64", "shape": [1], "names": None}
        for key in ("timestamp", "frame_index", "episode_index", "index", "task_index")
    }
    chunk = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    data_path = (
        f"data/{chunk}.parquet"
        if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    )
    video_path = (
        f"videos/{{video_key}}/{chunk}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    )
    return {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 1000 if v3 else 3,
        "total_episodes": len(data.lengths),
        "total_frames": sum(data.lengths),
        "total_tasks": len(TASKS),
        "data_path": data_path,
        "video_path": video_path,
        "features": features,
    }


def _rows(data: Synthetic, episodes: Sequence[int], image_camera: bool) -> pa.Table:
    rows = np.concatenate([data.starts[e] + np.arange(data.lengths[e]) for e in episodes])
    frame = np.concatenate([np.arange(data.lengths[e]) for e in episodes])
    values: dict[str, Any] = {
        key: pa.array(
            list(column[rows]), type=pa.list_(pa.float32(), column.shape[1] if key == "action" else -1)
        )
        for key, column in data.columns.items()
        if key != "observation.touch"
    }
    values["observation.touch"] = pa.array(data.columns["observation.touch"][rows, 0] > 0)
    if image_camera:
        key = "observation.images.wrist"
        values[key] = [
            {"bytes": _png(picture(data.code("wrist", int(row)))), "path": f"{row}.png"} for row in rows
        ]
    values["timestamp"] = (frame / FPS).astype(np.float32)
    values["frame_index"] = frame
    values["episode_index"] = np.concatenate([np.full(data.lengths[e], e) for e in episodes])
    values["index"] = rows
    values["task_index"] = data.task_index[rows]
    return pa.table(values)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def _tasks_of(data: Synthetic, episode: int) -> list[str]:
    start = data.starts[episode]
    return [
        TASKS[index]
        for index in dict.fromkeys(data.task_index[start : start + data.lengths[episode]].tolist())
    ]


def _film(data: Synthetic, path: Path, camera: str, episodes: Sequence[int]) -> None:
    rows = [data.starts[e] + frame for e in episodes for frame in range(data.lengths[e])]
    encode(path, (picture(data.code(camera, row)) for row in rows))


def _write_v2(data: Synthetic, image_camera: bool) -> None:
    meta = data.root / "meta"
    write_lines(meta / "tasks.jsonl", ({"task_index": i, "task": task} for i, task in enumerate(TASKS)))
    write_lines(
        meta / "episodes.jsonl",
        (
            {"episode_index": e, "tasks": _tasks_of(data, e), "length": length}
            for e, length in enumerate(data.lengths)
        ),
    )
    for e in range(len(data.lengths)):
        chunk = f"chunk-{e // 3:03d}"
        path = data.root / "data" / chunk / f"episode_{e:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(data, [e], image_camera), path)
        for camera in ("top",) if image_camera else data.cameras:
            video = data.root / "videos" / chunk / f"observation.images.{camera}" / f"episode_{e:06d}.mp4"
            _film(data, video, camera, [e])


def _write_v3(data: Synthetic, image_camera: bool) -> None:
    """Data, each camera and the episode table are cut into files at different episodes."""
    count = len(data.lengths)
    cuts = {"data": 2, "top": count - 2, "wrist": 1, "meta": 3}
    place = {key: {e: (int(e >= cut), 0) for e in range(count)} for key, cut in cuts.items()}
    groups = {key: [list(range(cut)), list(range(cut, count))] for key, cut in cuts.items()}
    for chunk, episodes in enumerate(groups["data"]):
        path = data.root / f"data/chunk-{chunk:03d}/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(data, episodes, image_camera), path)
    filmed = ("top",) if image_camera else data.cameras
    for camera in filmed:
        for chunk, episodes in enumerate(groups[camera]):
            _film(
                data,
                data.root / f"videos/observation.images.{camera}/chunk-{chunk:03d}/file-000.mp4",
                camera,
                episodes,
            )
    rows = []
    for e, length in enumerate(data.lengths):
        row: dict[str, Any] = {"episode_index": e, "tasks": _tasks_of(data, e), "length": length}
        row |= {"data/chunk_index": place["data"][e][0], "data/file_index": place["data"][e][1]}
        row |= {"dataset_from_index": data.starts[e], "dataset_to_index": data.starts[e] + length}
        for camera in filmed:
            before = sum(
                data.lengths[other] for other in range(e) if place[camera][other] == place[camera][e]
            )
            key = f"videos/observation.images.{camera}"
            row |= {f"{key}/chunk_index": place[camera][e][0], f"{key}/file_index": place[camera][e][1]}
            row |= {f"{key}/from_timestamp": before / FPS, f"{key}/to_timestamp": (before + length) / FPS}
        rows.append(row)
    for chunk, episodes in enumerate(groups["meta"]):
        path = data.root / f"meta/episodes/chunk-{chunk:03d}/file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([rows[e] for e in episodes]), path)
    tasks = pa.table({"task_index": range(len(TASKS)), "__index_level_0__": list(TASKS)})
    pq.write_table(tasks, data.root / "meta/tasks.parquet")


def write_robot(
    root: Path,
    *,
    state: int,
    action: int,
    cameras: dict[str, tuple[int, int]],
    shift: float = 0.0,
    force: int = 0,
    fps: int = FPS,
) -> Path:
    """Write a dataset of a robot with these widths and cameras; its numbers lie around `shift`."""
    generator = np.random.default_rng([state, action])
    vectors = {
        "observation.state": [f"joint_{i}" for i in range(state)],
        "action": [f"motor_{i}" for i in range(action)],
        "observation.force": [f"force_{i}" for i in range(force)],
    }
    vectors = {key: names for key, names in vectors.items() if names}
    with LeRobotWriter(root, fps=fps, cameras=cameras, vectors=vectors) as writer:
        for length in (12, 9, 15, 10):
            frames: dict[str, np.ndarray] = {
                key: generator.normal(shift, 1.0 + shift, (length, len(names))).astype(np.float32)
                for key, names in vectors.items()
            }
            for name, size in cameras.items():
                pixels = generator.integers(0, 256, (length, 3, *size), dtype=np.uint8)
                frames[f"observation.images.{name}"] = pixels
            writer.add_episode(f"move {action} motors", frames)
    return root
