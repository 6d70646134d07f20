"""Features of frozen backbones, computed once for all training samples and read from a table from then on.

What a frozen backbone makes of a sample never changes where nothing random comes before it. So it runs once over the
data, and its features are stored beside the states and actions; training then touches neither images nor backbone. The
table is named by a hash of all that it depends on: see `feature_key`.

Of several processes each writes its share of the rows. Whether a table is there, and whether it could be written, is
decided for all of them together, so that none goes on to train while others wait.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ....schemas.errors import DatasetError
from ...data.frames.cache import cache_root, locked
from ...policy import RecipePolicy
from ...policy.cached_features import as_entries
from ...policy.recipe_policy import ROBOTS
from ..batches import on_device, to_device
from ..chance import is_random, mode
from .fill import fast_backbones
from .key import feature_key
from .table import DamagedTableError, Rows, RowsWriter, UnlikeRowsError, open_rows

T = TypeVar("T")
_SPARE = 1 << 30
"""Bytes that stay free on the disk."""
_SHARE = 8
"""A table goes to the GPU where it takes less than one in so many of its free bytes: training needs the rest."""


@dataclass(frozen=True)
class Samples:
    """The training samples, and how batches are made of them."""

    dataset: Dataset[Any]
    count: int
    collate: Callable[[Sequence[Any]], Any]
    batch_size: int
    workers: int
    fingerprint: str


class _Obstacle(Exception):
    """Why features cannot be stored."""


def stored_rows(
    policy: Any,
    samples: Samples,
    seen: int,
    accelerator: Accelerator,
    note: Callable[[str], None],
) -> Rows | None:
    """All training samples with the features of the frozen backbones, on the device where they are small there.

    None where there is nothing to store, or it cannot be, or would not pay for `seen` samples of all processes that are
    still to be seen; `note` is told why, and what is done instead. All processes do the same.
    """
    names = policy.frozen_backbones
    if not names:
        return None
    table = _Table(policy, samples, seen, accelerator, note)
    if not (steady := table.steady(names)):
        return None
    try:
        rows = table.open(steady)
    except _Obstacle as obstacle:
        note(f"frozen {_called(steady)} runs in every step: {obstacle}")
        return None
    place = accelerator.device
    if place.type == "cuda" and rows.bytes < torch.cuda.mem_get_info(place)[0] // _SHARE:
        return rows.to(place)
    return rows


class _Table:
    """The table of one policy and its data."""

    def __init__(
        self,
        policy: RecipePolicy,
        samples: Samples,
        seen: int,
        accelerator: Accelerator,
        note: Callable[[str], None],
    ) -> None:
        self._policy, self._samples, self._seen = policy, samples, seen
        self._accelerator, self._note = accelerator, note
        self._names: list[str] = []
        self._dropped: set[str] = set()

    def steady(self, names: list[str]) -> list[str]:
        """The backbones that nothing random comes before; of the others it tells why they are not."""
        device = self._accelerator.device
        obstacles = dict.fromkeys(names, "the collator draws random numbers")
        if not is_random(self._first, device):
            first = self._policy.with_action_padding(self._first())
            obstacles = {name: self._chance_before(name, first) for name in names}
        for name, obstacle in obstacles.items():
            if obstacle:
                self._note(f"frozen `{name}` runs in every step: {obstacle}")
        return [name for name in names if not obstacles[name]]

    def open(self, names: list[str]) -> Rows:
        """The rows, computed first where they are not there. Raises _Obstacle, in all processes."""
        policy, samples = self._policy, self._samples
        others = policy.dependencies.read_by_others(names)
        if images := sorted(policy.dependencies.images & others):
            raise _Obstacle(f"`{images[0]}` is read by others too")
        own = policy.dependencies.read_only_by(names)
        self._names, self._dropped = names, own | policy.dependencies.images
        first = self._first()
        listed = sorted(key for key in others if key in first and not isinstance(first[key], Tensor))
        if listed:
            raise _Obstacle(f"others read `{listed[0]}`, which is no tensor")
        root = cache_root() / "features"
        directory = root / feature_key(
            policy, names, self._dropped, samples.fingerprint, self._accelerator.mixed_precision
        )
        if self._is_there(directory):
            self._note(f"features of frozen {_called(names)} are read from {directory}")
        elif self._seen <= samples.count:
            raise _Obstacle("no sample comes twice")
        else:
            row = {key: values[:1].cpu() for key, values in self._entries(first).items()}
            size = sum(values.numel() * values.element_size() for values in row.values()) * samples.count
            self._by_main(partial(_check_room, root, size))
            self._note(
                f"running frozen {_called(names)} once over {samples.count} samples, "
                f"into {size / 1e6:,.0f} MB at {directory}"
            )
            self._fill(root, directory, row)
        return self._by_all(partial(open_rows, directory))

    def _by_all(self, step: Callable[[], T]) -> T:
        """What a step gives here. Raises _Obstacle in all processes where it fails in one of them."""
        made, trouble = _tried(step)
        for told in gather_object([trouble]):
            if told:
                raise _Obstacle(told)
        return cast(T, made)

    def _by_main(self, step: Callable[[], T]) -> T:
        """What a step gives in the main process, which alone takes it. Raises _Obstacle in all where it fails."""
        tried = [_tried(step) if self._accelerator.is_main_process else None]
        broadcast_object_list(tried)
        assert tried[0] is not None
        made, trouble = tried[0]
        if trouble:
            raise _Obstacle(trouble)
        return cast(T, made)

    def _is_there(self, directory: Path) -> bool:
        """Whether there is a whole table; one that is damaged is removed."""
        damage = self._by_main(partial(_damage, directory))
        if damage:
            self._note(f"{directory} is damaged ({damage}) and made again")
        return damage == ""

    def _fill(self, root: Path, directory: Path, row: Mapping[str, Tensor]) -> None:
        accelerator, samples = self._accelerator, self._samples
        with ExitStack() as stack:
            work = self._by_main(partial(_work, root, directory.name, stack))
            writer = RowsWriter(work, directory, row, samples.count)
            self._by_main(writer.create)
            share = range(
                samples.count * accelerator.process_index // accelerator.num_processes,
                samples.count * (accelerator.process_index + 1) // accelerator.num_processes,
            )
            self._by_all(partial(self._write, writer, share))
            self._by_main(lambda: None if directory.exists() else writer.finish())

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
        probe = partial(self._entries, self._first())
        with fast_backbones(backbones, probe, self._accelerator.mixed_precision):
            coming: _OnHost | None = None
            for first, batch in zip(share[:: samples.batch_size], on_device(loader, device), strict=True):
                size = min(samples.batch_size, share.stop - first)
                done, coming = coming, _OnHost(first, size, self._entries(batch))
                if done is not None:
                    done.write(writer)
            if coming is not None:
                coming.write(writer)

    def _first(self) -> dict[str, Any]:
        """A batch of the first samples, on the device."""
        samples = self._samples
        batch = samples.collate([samples.dataset[index] for index in range(min(2, samples.count))])
        return to_device(batch, self._accelerator.device)

    def _chance_before(self, name: str, batch: dict[str, Any]) -> str:
        """What is random before a backbone; empty where nothing is."""
        policy = self._policy
        for transform, keys in zip(
            policy.transforms, policy.dependencies.before_transforms([name]), strict=True
        ):
            seen = {key: value for key, value in batch.items() if key in keys or key in ROBOTS}
            with mode(transform, training=True):
                if is_random(partial(transform, seen), self._accelerator.device):
                    return f"`{transform.config.type}` changes what it reads at random"
            with mode(transform, training=False):
                batch = transform(batch)
        return ""

    @torch.no_grad()
    def _entries(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is kept of a batch, and its features. Raises _Obstacle."""
        kept = {
            key: value
            for key, value in batch.items()
            if key not in self._dropped and isinstance(value, Tensor)
        }
        half = self._accelerator.mixed_precision == "bf16"
        with self._accelerator.autocast(), mode(self._policy, training=True):
            transformed = self._policy.transform(to_device(batch, self._accelerator.device))
            for name in self._names:
                try:
                    made = as_entries(self._policy.encode(name, transformed))
                except ValueError as error:
                    raise _Obstacle(str(error)) from error
                for key, value in made.items():
                    kept[key] = value.bfloat16() if half and value.is_floating_point() else value
        return kept


class _OnHost:
    """Entries on their way to the host, which need not be waited for while the device computes the next."""

    def __init__(self, first: int, size: int, entries: Mapping[str, Tensor]) -> None:
        self._first, self._size = first, size
        self._values = {key: _sent(values) for key, values in entries.items()}
        self._arrived = torch.cuda.Event() if any(values.is_cuda for values in entries.values()) else None
        if self._arrived is not None:
            self._arrived.record()

    def write(self, writer: RowsWriter) -> None:
        """Put them into the table."""
        if self._arrived is not None:
            self._arrived.synchronize()
        writer.write(self._first, self._values, self._size)


def _sent(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _called(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _tried(step: Callable[[], T]) -> tuple[T | None, str]:
    """What a step gives, and why it failed, which is empty where it did not."""
    try:
        return step(), ""
    except OSError as error:
        return None, f"its features cannot be written ({error.strerror or error})"
    except UnlikeRowsError as error:
        return None, f"its features differ in shape from batch to batch ({error})"
    except (_Obstacle, DatasetError, DamagedTableError) as error:
        return None, str(error)


def _damage(directory: Path) -> str | None:
    """What is wrong with a table, which is then removed; empty where nothing is, None where there is no table."""
    if not directory.exists():
        return None
    try:
        open_rows(directory)
    except DamagedTableError as damage:
        shutil.rmtree(directory)
        return str(damage)
    return ""


def _work(root: Path, key: str, stack: ExitStack) -> Path:
    """A new directory for a table in the making, for as long as the stack: this process alone makes this table."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stack.enter_context(locked(root / f"{key}.lock")):
        for abandoned in root.glob(f"{key}.*.tmp"):
            shutil.rmtree(abandoned, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
    stack.callback(shutil.rmtree, work, ignore_errors=True)
    return work


def _check_room(root: Path, size: int) -> None:
    """Raises _Obstacle where features of so many bytes would not fit on the disk, or not into memory."""
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free - _SPARE
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    for room, name in ((free, f"on the disk of {root}"), (memory, "in half of this machine's memory")):
        if size > room:
            raise _Obstacle(
                f"its features take {size / 1e9:,.1f} GB, and {name} there are {max(room, 0) / 1e9:,.1f} GB"
            )
