"""Writer of datasets in LeRobot's v3.0 format, which lerobot 0.4 and later load.

    with LeRobotWriter(folder, fps=80, cameras={"front": (96, 96)}, vectors={"action": names}) as writer:
        writer.add_episode("Open the drawer", {"observation.images.front": images, "action": actions})

Episodes share parquet and mp4 files. Everything is written into a hidden folder beside the target and moved
into place at the end, so a dataset is either complete or absent. Equal input yields equal bytes.

Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ....schemas.errors import DatasetError
from ....schemas.specs import IMAGES
from .metadata import MEGABYTE, counter_features, dataset_info, video_feature, write_json
from .parquet import COUNTERS, DataFiles, vector_schema, vector_table, write_episodes, write_tasks
from .staging import publish, stage
from .statistics import ImageSummary, VectorSummary
from .video import CODEC, VideoFiles

Frames = Mapping[str, NDArray[Any]]


class LeRobotWriter:
    """Context manager that writes a dataset to `root`, and leaves nothing after an error.

    Args:
        root: Directory of the dataset, absent or empty.
        fps: Frames per second.
        cameras: Height and width in pixels, by name.
        vectors: Names of the dimensions of each vector, by key, such as `observation.state`.
        robot_type: Name of the robot.
        data_megabytes: Approximate size limit of a parquet file.
        video_megabytes: Approximate size limit of an mp4 file.

    Raises:
        DatasetError: `root` exists and is not empty.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: int,
        cameras: Mapping[str, tuple[int, int]],
        vectors: Mapping[str, Sequence[str]],
        robot_type: str = "unknown",
        data_megabytes: int = 100,
        video_megabytes: int = 200,
    ) -> None:
        self._folder = stage(root)
        self.root, self.fps = root, fps
        self._robot_type = robot_type
        self._cameras = {f"{IMAGES}{name}": size for name, size in cameras.items()}
        self._vectors = {key: list(names) for key, names in vectors.items()}
        self._megabytes = data_megabytes, video_megabytes
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._frames = 0
        self._summaries = self._new_summaries()
        self._schema = vector_schema({key: len(names) for key, names in self._vectors.items()})
        self._data = DataFiles(self._folder, self._schema, limit=data_megabytes * MEGABYTE)
        self._videos = {
            key: VideoFiles(
                self._folder, key, fps=fps, height=height, width=width, limit=video_megabytes * MEGABYTE
            )
            for key, (height, width) in self._cameras.items()
        }

    def add_episode(self, task: str, frames: Frames) -> None:
        """Append one episode.

        `frames` maps the `observation.images.<name>` of every camera to uint8 (T, 3, H, W), and the key of
        every vector to float32 (T, D).

        Raises:
            DatasetError: A key is missing or unknown, a shape or type differs from the declared one, a number
                is not finite, or an image has an odd side.
        """
        length = self._checked_length(frames)
        index = len(self._episodes)
        task_index = self._tasks.setdefault(task, len(self._tasks))
        columns = self._columns(frames, length, index, task_index)
        row: dict[str, Any] = {"episode_index": index, "tasks": [task], "length": length}
        row |= self._data.add(vector_table(columns, self._schema))
        row |= {"dataset_from_index": self._frames, "dataset_to_index": self._frames + length}
        for key, files in self._videos.items():
            row |= files.add(frames[key])
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        row |= self._summarize({**{key: frames[key] for key in self._cameras}, **columns})
        self._episodes.append(row)
        self._frames += length

    def write_json(self, relative: str, content: Any) -> None:
        """Write `content` to a path relative to the dataset, such as `meta/recording.json`."""
        write_json(self._folder / relative, content)

    def finish(self) -> None:
        """Complete the dataset and move it into place; called at the end of the `with` block.

        Raises:
            DatasetError: No episode was added, or `root` is no longer empty.
        """
        if not self._episodes:
            raise DatasetError(f"{self.root}: a dataset needs at least one episode")
        self._close_files()
        self.write_json("meta/info.json", self._info())
        self.write_json(
            "meta/stats.json", {key: summary.result() for key, summary in self._summaries.items()}
        )
        write_tasks(self._folder, list(self._tasks))
        write_episodes(self._folder, self._episodes)
        publish(self._folder, self.root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
            else:
                self._close_files()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _checked_length(self, frames: Frames) -> int:
        declared = {*self._cameras, *self._vectors}
        if set(frames) != declared:
            raise DatasetError(
                f"an episode must have exactly {sorted(declared)}; missing {sorted(declared - set(frames))}, "
                f"unknown {sorted(set(frames) - declared)}"
            )
        length = len(next(iter(frames.values())))
        shapes: dict[str, tuple[int, ...]] = {key: (length, 3, *size) for key, size in self._cameras.items()}
        shapes |= {key: (length, len(names)) for key, names in self._vectors.items()}
        for key, shape in shapes.items():
            kind, values = np.dtype(np.uint8 if key in self._cameras else np.float32), frames[key]
            if length == 0 or values.shape != shape or values.dtype != kind:
                raise DatasetError(
                    f"`{key}` must be {kind} of shape {shape} with at least one frame, "
                    f"found {values.dtype} of shape {values.shape}"
                )
            if key in self._vectors and not np.isfinite(values).all():
                raise DatasetError(
                    f"`{key}` of episode {len(self._episodes)} has values that are not finite; correct them"
                )
        return length

    def _columns(self, frames: Frames, length: int, episode: int, task: int) -> dict[str, NDArray[Any]]:
        steps = np.arange(length)
        counters = (
            (steps / self.fps).astype(np.float32),
            steps,
            np.full(length, episode),
            self._frames + steps,
            np.full(length, task),
        )
        return {**{key: frames[key] for key in self._vectors}, **dict(zip(COUNTERS, counters, strict=True))}

    def _new_summaries(self) -> dict[str, ImageSummary | VectorSummary]:
        vectors = (*self._vectors, *COUNTERS)
        return {key: ImageSummary() for key in self._cameras} | {key: VectorSummary() for key in vectors}

    def _summarize(self, features: Frames) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for key, summary in self._new_summaries().items():
            values = features[key] if features[key].ndim > 1 else features[key][:, None]
            summary.add(values)
            self._summaries[key].add(values)
            row |= {f"stats/{key}/{name}": value for name, value in summary.result().items()}
        return row

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, (height, width) in self._cameras.items():
            features[key] = video_feature(height, width, fps=self.fps, codec=CODEC)
        for key, names in self._vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
        return dataset_info(
            features | counter_features(),
            episodes=len(self._episodes),
            frames=self._frames,
            tasks=len(self._tasks),
            fps=self.fps,
            robot_type=self._robot_type,
            megabytes=self._megabytes,
        )

    def _close_files(self) -> None:
        self._data.close()
        for files in self._videos.values():
            files.close()
