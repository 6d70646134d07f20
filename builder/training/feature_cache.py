"""Features of frozen backbones, computed once for all training samples and read from a table from then on.

What a frozen backbone makes of a sample never changes where nothing random comes before it. So it runs once over the
data, and its features are stored beside the states and actions; training then touches neither images nor backbone. The
table is named by a hash of all that it depends on: weights, transforms, data and precision.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ...schemas.errors import DatasetError
from ..data.cache import cache_root
from ..data.rows import DamagedTableError, Rows, RowsWriter, open_rows
from ..policy import RecipePolicy
from ..policy.stored import as_entries

_FORMAT = 1
_SPARE = 1 << 30
"""Bytes that stay free on the disk."""


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
    policy: Any, samples: Samples, seen: int, accelerator: Accelerator, note: Callable[[str], None]
) -> Rows | None:
    """All training samples with the features of the frozen backbones, on the device where they fit there.

    None where there is nothing to store, or it cannot be, or would not pay for `seen` samples of all processes that are
    still to be seen; `note` is told why, and what is done instead.
    """
    names = policy.at_rest if isinstance(policy, RecipePolicy) else []
    if not names:
        return None
    called = ", ".join(f"`{name}`" for name in names)
    try:
        if seen <= samples.count:
            raise _Obstacle("no sample comes twice")
        rows = _Table(policy, names, samples, accelerator, note).open()
    except _Obstacle as obstacle:
        note(f"frozen {called} runs in every step: {obstacle}")
        return None
    place = accelerator.device
    if place.type == "cuda" and rows.bytes < torch.cuda.mem_get_info(place)[0] // 2:
        return rows.to(place)
    return rows


class _Table:
    """The table of one policy and its data."""

    def __init__(
        self,
        policy: RecipePolicy,
        names: list[str],
        samples: Samples,
        accelerator: Accelerator,
        note: Callable[[str], None],
    ) -> None:
        self._policy, self._names, self._samples = policy, names, samples
        self._accelerator, self._note = accelerator, note
        self._called = ", ".join(f"`{name}`" for name in names)
        self._dropped = policy.read_only_by(names)

    def open(self) -> Rows:
        """The rows, computed first where they are not there. Raises _Obstacle."""
        samples = self._samples
        first = samples.collate([samples.dataset[index] for index in range(min(2, samples.count))])
        self._check(self._on_device(first))
        root = cache_root() / "features"
        directory = root / self._key()
        row = {key: values[:1].cpu() for key, values in self._entries(first).items()}
        found = self._existing(directory)
        if found is not None:
            return found
        size = sum(values.numel() * values.element_size() for values in row.values()) * samples.count
        _check_room(root, size)
        self._note(
            f"running frozen {self._called} once over {samples.count} samples, into {size / 1e6:,.0f} MB at {directory}"
        )
        self._fill(root, directory, row)
        try:
            return open_rows(directory)
        except DamagedTableError as damage:
            raise DatasetError(
                f"{directory} was just written and is damaged ({damage}); check the disk"
            ) from None

    def _existing(self, directory: Path) -> Rows | None:
        found: Rows | None = None
        damaged = ""
        if directory.exists():
            try:
                found = open_rows(directory)
            except DamagedTableError as damage:
                damaged = str(damage)
        self._accelerator.wait_for_everyone()
        if found is not None:
            self._note(f"features of frozen {self._called} are read from {directory}")
        elif damaged:
            self._note(f"{directory} is damaged ({damaged}) and made again")
            if self._accelerator.is_main_process:
                shutil.rmtree(directory)
            self._accelerator.wait_for_everyone()
        return found

    def _fill(self, root: Path, directory: Path, row: Mapping[str, Tensor]) -> None:
        accelerator, samples = self._accelerator, self._samples
        work = [f"{directory.name}.{os.getpid()}.tmp"]
        broadcast_object_list(work)
        writer = RowsWriter(root / work[0], directory, row, samples.count)
        try:
            failure = [_created(writer) if accelerator.is_main_process else ""]
            broadcast_object_list(failure)
            if failure[0]:
                raise _Obstacle(f"{root} cannot be written to ({failure[0]})")
            share = range(
                samples.count * accelerator.process_index // accelerator.num_processes,
                samples.count * (accelerator.process_index + 1) // accelerator.num_processes,
            )
            loader = DataLoader(
                Subset(samples.dataset, share),
                batch_size=samples.batch_size,
                collate_fn=samples.collate,
                num_workers=samples.workers,
                pin_memory=accelerator.device.type == "cuda",
            )
            first = share.start
            for batch in loader:
                entries = self._entries(batch)
                writer.write(first, entries)
                first += len(next(iter(entries.values())))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                writer.finish()
            accelerator.wait_for_everyone()
        except ValueError as error:
            raise _Obstacle(f"its features differ in shape from batch to batch ({error})") from error
        except OSError as error:
            raise _Obstacle(f"{root} cannot be written to ({error.strerror or error})") from error
        finally:
            if accelerator.is_main_process:
                writer.discard()

    @torch.no_grad()
    def _entries(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is kept of a batch, and its features. Raises _Obstacle."""
        kept = {
            key: value
            for key, value in batch.items()
            if key not in self._dropped and isinstance(value, Tensor)
        }
        half = self._accelerator.mixed_precision == "bf16"
        with self._accelerator.autocast(), _training(self._policy):
            transformed = self._policy.transform(self._on_device(batch))
            for name in self._names:
                try:
                    made = as_entries(self._policy.encode(name, transformed))
                except ValueError as error:
                    raise _Obstacle(str(error)) from error
                for key, value in made.items():
                    kept[key] = value.bfloat16() if half and value.is_floating_point() else value
        return kept

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        device = self._accelerator.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _check(self, batch: Mapping[str, Any]) -> None:
        """Raises _Obstacle where something random comes before the backbones, or others read what they read."""
        policy = self._policy
        listed = sorted(key for key, value in batch.items() if not isinstance(value, Tensor))
        if others := [key for key in listed if key in policy.read_besides(self._names)]:
            raise _Obstacle(f"others read `{others[0]}`, which is no tensor")
        if images := sorted(policy.images & policy.read_besides(self._names)):
            raise _Obstacle(f"`{images[0]}` is read by others too")
        current = dict(batch)
        for transform, keys in zip(policy.transforms, policy.way_to(self._names), strict=True):
            seen = {key: value for key, value in current.items() if key in keys}
            if _is_random(transform, seen, self._accelerator.device):
                raise _Obstacle(f"`{transform.config.type}` changes what it reads at random")
            current = transform.eval()(current)
        policy.train(policy.training)

    def _key(self) -> str:
        """A hash of all that the features depend on."""
        policy = self._policy
        content = policy.config.recipe or {}
        told = {
            "format": _FORMAT,
            "data": [self._samples.fingerprint, content["data"], content["collator"]],
            "transforms": content["transforms"],
            "backbones": {name: content["policy"]["backbones"][name] for name in self._names},
            "outputs": {name: policy.outputs_of(name) for name in self._names},
            "facts": [policy.config.facts, policy.config.statistics],
            "dropped": sorted(self._dropped),
            "precision": self._accelerator.mixed_precision,
            "versions": (policy.config.provenance or {}).get("versions"),
            "source": [_source(part) for part in (*policy.transforms, policy.collator)],
            "weights": {name: _digest(policy.backbones[name]) for name in self._names},
        }
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _created(writer: RowsWriter) -> str:
    """What went wrong; empty where nothing did."""
    try:
        writer.create()
    except OSError as error:
        return error.strerror or str(error)
    return ""


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


def _is_random(transform: nn.Module, batch: Mapping[str, Any], device: torch.device) -> bool:
    """Whether a transform, in training, draws random numbers for a batch, or makes two things of it."""
    with _training(transform), torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = _drawn(device)
        once = transform(batch)
        if not torch.equal(before, _drawn(device)):
            return True
        again = transform(batch)
    return any(not torch.equal(value, again[key]) for key, value in once.items() if isinstance(value, Tensor))


def _drawn(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    was = module.training
    module.train()
    try:
        yield
    finally:
        module.train(was)


def _digest(module: nn.Module) -> str:
    """Of a module's code, parameters and buffers."""
    digest = hashlib.sha256(_source(module).encode())
    for name, value in sorted(module.state_dict(keep_vars=False).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source(part: object) -> str:
    """The file that defines a part."""
    try:
        return inspect.getsource(inspect.getmodule(type(part)))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return type(part).__qualname__
