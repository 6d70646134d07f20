"""Batches of time windows over the numeric columns of a table: samples without images, many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .lerobot.features import ACTION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .lerobot.table import EpisodeTable


def windows(
    table: EpisodeTable,
    observations: Sequence[int],
    actions: Sequence[int],
    size: int = 1024,
    *,
    tasks: Mapping[int, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield batches of up to `size` samples in order, as in `LeRobotDataset` with the same offsets.

    A batch has every `observation.*` (B, T, D), `action` (B, H, A) and `action_is_pad` (B, H). With `tasks`,
    texts by `task_index`, it also has `task`, B strings.
    """
    first = np.repeat(np.asarray(table.first_rows), table.lengths)
    last = first + np.repeat(np.asarray(table.lengths), table.lengths) - 1
    for start in range(0, table.rows, size):
        rows = np.arange(start, min(start + size, table.rows))
        bounds = first[rows, None], last[rows, None]
        seen = np.clip(rows[:, None] + np.asarray(observations), *bounds)
        wanted = rows[:, None] + np.asarray(actions)
        done = np.clip(wanted, *bounds)
        chosen = {key: done if key == ACTION else seen for key in table.columns}
        batch: dict[str, Any] = {
            key: torch.from_numpy(table.columns[key][index]) for key, index in chosen.items()
        }
        if tasks is not None:
            batch["task"] = [tasks[index] for index in table.task_index[rows].tolist()]
        yield {**batch, "action_is_pad": torch.from_numpy(wanted != done)}
