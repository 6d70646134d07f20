"""Features of frozen backbones, computed once for all training samples and read from a table afterwards.

The features of a frozen backbone never change if nothing random comes before it. So it runs once over the
data, and its features are stored beside the states and actions; training then touches neither images nor
backbone. The table is named by a hash of everything it depends on: see `feature_key`.

Several processes write a share of the rows each. They agree on whether a table exists and whether it could be
written, so that none begins to train while others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ...data.frames.cache import cache_root
from ...module_patches import training_mode
from ...policy import BasePolicyModel, RecipePolicy
from ...policy.cached_features import as_entries
from ...policy.recipe_policy import ROBOTS
from ..batches import on_device, to_device
from ..randomness import is_random
from .fill import fast_backbones
from .key import feature_key
from .storage import ObstacleError, attempt, check_room, remove_if_damaged, work_directory
from .table import Rows, RowsWriter, open_rows

T = TypeVar("T")
_SHARE = 8
"""A table goes to the GPU if it takes less than one in so many of its free bytes; training needs the others."""


@dataclass(frozen=True)
class Samples:
    """The training samples, and how they become batches."""

    dataset: Dataset[Any]
    count: int
    collate: Callable[[Sequence[Any]], Any]
    batch_size: int
    workers: int
    fingerprint: str


def stored_rows(
    policy: BasePolicyModel,
    samples: Samples,
    left: int,
    accelerator: Accelerator,
    note: Callable[[str], None],
) -> Rows | None:
    """Return all training samples with the features of the frozen backbones, on the GPU if they are small.

    Return None if there is nothing to store, or if storing is not possible or would not pay for the `left`
    samples that all processes are still going to see; `note` receives the reason. All processes return the
    same.
    """
    if not policy.frozen_backbones:
        return None
    # only a composed policy has frozen backbones
    table = _Table(cast("RecipePolicy", policy), samples, left, accelerator, note)
    if not (names := table.deterministic(policy.frozen_backbones)):
        return None
    try:
        rows = table.open(names)
    except ObstacleError as obstacle:
        note(f"frozen {_list(names)} runs in every step: {obstacle}")
        return None
    device = accelerator.device
    if device.type == "cuda" and rows.bytes < torch.cuda.mem_get_info(device)[0] // _SHARE:
        return rows.to(device)
    return rows


class _Table:
    """The table of one policy and its data."""

    def __init__(
        self,
        policy: RecipePolicy,
        samples: Samples,
        left: int,
        accelerator: Accelerator,
        note: Callable[[str], None],
    ) -> None:
        self._policy, self._samples, self._left = policy, samples, left
        self._accelerator, self._note = accelerator, note
        self._names: list[str] = []
        self._dropped: set[str] = set()

    def deterministic(self, names: list[str]) -> list[str]:
        """Return the backbones before which nothing is random, and note the reason for each of the others."""
        device = self._accelerator.device
        obstacles = dict.fromkeys(names, "the collator draws random numbers")
        if not is_random(self._first_batch, device):
            first = self._policy.with_action_padding(self._first_batch())
            obstacles = {name: self._randomness_before(name, first) for name in names}
        for name, obstacle in obstacles.items():
            if obstacle:
                self._note(f"frozen `{name}` runs in every step: {obstacle}")
        return [name for name in names if not obstacles[name]]

    def open(self, names: list[str]) -> Rows:
        """Return the rows, after computing those of a new table.

        Raise ObstacleError, in all processes, if that fails.
        """
        policy, samples = self._policy, self._samples
        others = policy.dependencies.read_by_others(names)
        if images := sorted(policy.dependencies.images & others):
            raise ObstacleError(f"`{images[0]}` is read by others too")
        own = policy.dependencies.read_only_by(names)
        self._names, self._dropped = names, own | policy.dependencies.images
        first = self._first_batch()
        listed = sorted(key for key in others if key in first and not isinstance(first[key], Tensor))
        if listed:
            raise ObstacleError(f"others read `{listed[0]}`, which is not a tensor")
        root = cache_root() / "features"
        directory = root / feature_key(
            policy, names, self._dropped, samples.fingerprint, self._accelerator.mixed_precision
        )
        if self._exists(directory):
            self._note(f"features of frozen {_list(names)} are read from {directory}")
        elif self._left <= samples.count:
            raise ObstacleError("no sample comes twice")
        else:
            row = {key: values[:1].cpu() for key, values in self._entries(first).items()}
            size = sum(values.numel() * values.element_size() for values in row.values()) * samples.count
            self._in_main_process(partial(check_room, root, size))
            self._note(
                f"running frozen {_list(names)} once over {samples.count} samples, "
                f"into {size / 1e6:,.0f} MB at {directory}"
            )
            self._fill(root, directory, row)
        return self._in_all_processes(partial(open_rows, directory))

    def _in_all_processes(self, step: Callable[[], T]) -> T:
        """Return the result of a step. Raise ObstacleError in all processes if it fails in one of them."""
        result, failure = attempt(step)
        for each in gather_object([failure]):
            if each:
                raise ObstacleError(each)
        return cast(T, result)

    def _in_main_process(self, step: Callable[[], T]) -> T:
        """Return the result of a step that the main process takes.

        Raise ObstacleError in all processes if it fails.
        """
        attempts = [attempt(step) if self._accelerator.is_main_process else None]
        broadcast_object_list(attempts)
        assert attempts[0] is not None
        result, failure = attempts[0]
        if failure:
            raise ObstacleError(failure)
        return cast(T, result)

    def _exists(self, directory: Path) -> bool:
        """Return whether there is a whole table, after removing one that is damaged."""
        damage = self._in_main_process(partial(remove_if_damaged, directory))
        if damage:
            self._note(f"{directory} is damaged ({damage}) and computed again")
        return damage == ""

    def _fill(self, root: Path, directory: Path, row: Mapping[str, Tensor]) -> None:
        accelerator, samples = self._accelerator, self._samples
        with ExitStack() as stack:
            work = self._in_main_process(partial(work_directory, root, directory.name, stack))
            writer = RowsWriter(work, directory, row, samples.count)
            self._in_main_process(writer.create)
            share = range(
                samples.count * accelerator.process_index // accelerator.num_processes,
                samples.count * (accelerator.process_index + 1) // accelerator.num_processes,
            )
            self._in_all_processes(partial(self._write, writer, share))
            self._in_main_process(lambda: None if directory.exists() else writer.finish())

    def _write(self, writer: RowsWriter, share: range) -> None:
        samples, device = self._samples, self._accelerator.device
        loader = DataLoader(
            Subset(samples.dataset, share),
            batch_size=samples.batch_size,
            collate_fn=samples.collate,
            num_workers=samples.workers,
            pin_memory=device.type == "cuda",
        )
        backbones = nn.ModuleDict({name: self._policy.backbones[name] for name in self._names})
        probe = partial(self._entries, self._first_batch())
        with (
            closing(on_device(loader, device)) as batches,
            fast_backbones(backbones, probe, self._accelerator.mixed_precision),
        ):
            pending: _HostCopy | None = None
            for first, batch in zip(share[:: samples.batch_size], batches, strict=True):
                size = min(samples.batch_size, share.stop - first)
                arrived, pending = pending, _HostCopy(first, size, self._entries(batch))
                if arrived is not None:
                    arrived.write(writer)
            if pending is not None:
                pending.write(writer)

    def _first_batch(self) -> dict[str, Any]:
        """Return a batch of the first samples, on the device."""
        samples = self._samples
        batch = samples.collate([samples.dataset[index] for index in range(min(2, samples.count))])
        return to_device(batch, self._accelerator.device)

    def _randomness_before(self, name: str, batch: dict[str, Any]) -> str:
        """Return what is random before a backbone; an empty text if nothing is."""
        policy = self._policy
        for transform, keys in zip(
            policy.transforms, policy.dependencies.before_transforms([name]), strict=True
        ):
            seen = {key: value for key, value in batch.items() if key in keys or key in ROBOTS}
            with training_mode(transform, True):
                if is_random(partial(transform, seen), self._accelerator.device):
                    return f"`{transform.config.type}` changes what it reads at random"
            with training_mode(transform, False):
                batch = transform(batch)
        return ""

    @torch.no_grad()
    def _entries(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the row entries of a batch: its tensors that are kept, and its features.

        Raise ObstacleError if a feature cannot be stored.
        """
        kept = {
            key: value
            for key, value in batch.items()
            if key not in self._dropped and isinstance(value, Tensor)
        }
        half = self._accelerator.mixed_precision == "bf16"
        with self._accelerator.autocast(), training_mode(self._policy, True):
            transformed = self._policy.transform(to_device(batch, self._accelerator.device))
            for name in self._names:
                try:
                    made = as_entries(self._policy.encode(name, transformed))
                except ValueError as error:
                    raise ObstacleError(str(error)) from error
                for key, value in made.items():
                    kept[key] = value.bfloat16() if half and value.is_floating_point() else value
        return kept


class _HostCopy:
    """Entries on their way to the host, while the device computes the next."""

    def __init__(self, first: int, size: int, entries: Mapping[str, Tensor]) -> None:
        self._first, self._size = first, size
        self._values = {key: _copy_to_host(values) for key, values in entries.items()}
        self._arrived = torch.cuda.Event() if any(values.is_cuda for values in entries.values()) else None
        if self._arrived is not None:
            self._arrived.record()

    def write(self, writer: RowsWriter) -> None:
        """Write the entries into the table, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        writer.write(self._first, self._values, self._size)


def _copy_to_host(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
