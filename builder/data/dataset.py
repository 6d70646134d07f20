"""A LeRobot dataset (v2.0, v2.1, v3.0) as windows of observations and actions.

    dataset = LeRobotDataset("datasets/push", cameras=["top"], observation_indices=[0],
    action_indices=range(16)) dataset[0]["action"].shape      # (16, A)

Each frame of the chosen episodes is one sample. Windows never cross the border of an episode: indices outside
are clamped to its first or last frame, and `action_is_pad` marks the clamped action steps. Opening a dataset
decodes its videos once into a cache, or indexes them if they are to be decoded later, and never writes into
the directory of the dataset.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...schemas.errors import DatasetError
from ...schemas.specs import IMAGES
from .fingerprint import fingerprint
from .frames.cache import cache_root
from .frames.store import open_cameras
from .lerobot.features import ACTION
from .lerobot.info import DatasetInfo, inspect
from .lerobot.layout import read_layout
from .lerobot.table import read_table
from .selection import without_idle_starts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from .frames.choice import FrameChoice
    from .lerobot.columns import Columns
    from .lerobot.layout import Feature, Layout
    from .lerobot.table import EpisodeTable

__all__ = ["DatasetInfo", "LeRobotDataset", "inspect"]


class LeRobotDataset(Dataset[dict[str, Any]]):
    """A map-style dataset with one sample per frame, T observation indices and H action indices.

    - `observation.images.<camera>` uint8 (T, 3, H, W), RGB, for every chosen camera
    - `observation.state` and every other numeric `observation.*`, float32 (T, D), in the dataset's units
    - `action` float32 (H, A), in the dataset's units, and `action_is_pad` bool (H,), True where clamped
    - `task` str, the instruction
    - `index` int64 scalar, number of the frame in the whole dataset, independent of the chosen episodes
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cameras: Sequence[str] | None = None,
        observation_indices: Sequence[int] = (0,),
        action_indices: Sequence[int] = (0,),
        episodes: Sequence[int] | None = None,
        vectors: Collection[str] | None = None,
        columns: Columns | None = None,
        frames: FrameChoice | None = None,
        trim: bool = False,
    ) -> None:
        """Open the dataset in the directory `path`.

        Args:
            path: Directory of the dataset.
            cameras: Cameras to read; None for all.
            observation_indices: Offsets of the T observations from the frame of the sample.
            action_indices: Offsets of the H actions from the frame of the sample.
            episodes: Episodes to read, in ascending order; None for all.
            vectors: Numeric `observation.*` to read; None for all.
            columns: Mapping of columns, see `map_columns`.
            frames: How frames are kept; by default as `auto` chooses.
            trim: Leave out the frames at the start of episodes in which the action does not change.

        Raises:
            DatasetError: The dataset is missing or damaged, or lacks the requested content.
        """
        layout = read_layout(path, columns)
        layout = without_idle_starts(layout) if trim else layout
        if not len(observation_indices) or not len(action_indices):
            raise DatasetError("a sample needs at least one observation index and one action index")
        chosen = layout.choose_episodes(episodes)
        shown = layout.choose_cameras(cameras)
        if cache_root().resolve().is_relative_to(layout.root.resolve()):
            raise DatasetError(
                f"the frame cache {cache_root()} is inside the dataset {layout.root}, which must stay unchanged; "
                "set POLICYSMITH_CACHE to another directory"
            )
        self.layout = layout
        self.table = read_table(layout, chosen, vectors)
        self.cameras: tuple[str, ...] = tuple(camera.name for camera in shown)
        self.fps: float = layout.fps
        self.episodes: tuple[int, ...] = self.table.episodes
        self.episode_lengths: tuple[int, ...] = self.table.lengths
        self.features: Mapping[str, Feature] = layout.features
        self._stores = {
            f"{IMAGES}{name}": store for name, store in open_cameras(layout, shown, chosen, frames).items()
        }
        self._vectors = {key: values for key, values in self.table.columns.items() if key != ACTION}
        self._actions = self.table.columns[ACTION]
        self._observation_offsets = np.asarray(observation_indices, dtype=np.int64)
        self._action_offsets = np.asarray(action_indices, dtype=np.int64)
        lengths = np.asarray(self.table.lengths)
        self._first = np.repeat(np.asarray(self.table.first_rows), lengths)
        self._last = self._first + np.repeat(lengths, lengths) - 1
        self._shift = np.repeat([e.start for e in chosen] - np.asarray(self.table.first_rows), lengths)
        self._columns = dict(columns or {})
        task_texts(layout, self.table)
        self._tasks = dict(layout.tasks)

    def __len__(self) -> int:
        return self.table.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample of a frame.

        Raises:
            IndexError: There is no such sample.
        """
        row = int(index)
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        first, last = self._first[row], self._last[row]
        seen = np.minimum(np.maximum(self._observation_offsets + row, first), last)
        wanted = self._action_offsets + row
        done = np.minimum(np.maximum(wanted, first), last)
        sample: dict[str, Any] = {
            key: torch.from_numpy(store.read(seen)) for key, store in self._stores.items()
        }
        for key, values in self._vectors.items():
            sample[key] = torch.from_numpy(values[seen])
        sample["action"] = torch.from_numpy(self._actions[done])
        sample["action_is_pad"] = torch.from_numpy(wanted != done)
        sample["task"] = self._tasks[self.table.task_index[row]]
        sample["index"] = torch.tensor(row + int(self._shift[row]))
        return sample

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor of a sample, without reading one.

        Raises:
            DatasetError: Samples have no such tensor.
        """
        seen, done = len(self._observation_offsets), len(self._action_offsets)
        shapes: dict[str, tuple[int, ...]] = {"action_is_pad": (done,), "index": ()}
        shapes |= {name: (seen, 3, store.height, store.width) for name, store in self._stores.items()}
        shapes |= {name: (seen, *values.shape[1:]) for name, values in self._vectors.items()}
        shapes[ACTION] = (done, *self._actions.shape[1:])
        if key not in shapes:
            raise DatasetError(
                f"samples have no tensor `{key}`, only {', '.join(f'`{name}`' for name in shapes)}"
            )
        return shapes[key]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of metadata, data of the chosen episodes and videos of the chosen cameras.

        It does not depend on the location of the dataset. Digests of unchanged files are cached.
        """
        chosen = self.layout.choose_episodes(self.episodes)
        return fingerprint(self.layout, chosen, self.cameras, self._columns)


def task_texts(layout: Layout, table: EpisodeTable) -> tuple[str, ...]:
    """Return the distinct instructions of all frames, or raise DatasetError if a text is missing."""
    used = np.unique(table.task_index).tolist()
    unknown = [index for index in used if index not in layout.tasks]
    if unknown:
        row = int(np.argmax(table.task_index == unknown[0]))
        episode, frame = table.locate(row)
        listed = ", ".join(map(str, sorted(layout.tasks)[:8])) + (", ..." if len(layout.tasks) > 8 else "")
        raise DatasetError(
            f"{layout.root}: episode {episode}, frame {frame} has the task_index {unknown[0]}, but the task "
            f"table in meta/ lists only {listed or 'none'}; add the missing task"
        )
    return tuple(dict.fromkeys(layout.tasks[index] for index in used))
