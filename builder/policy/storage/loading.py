"""Checks of a loaded policy: every weight of the checkpoint, every buffer, the same bits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ....schemas.errors import CheckpointError, PolicysmithError, WeightsError
from ... import compat, runs
from . import manifest

_HUB = ("cache_dir", "local_files_only", "revision", "token")


def home(source: Any, options: Mapping[str, Any], commit: str | None, patterns: Iterable[str]) -> Path:
    """Return the directory of a policy that was loaded with these options of `from_pretrained`.

    For a policy on a hub, return the snapshot of the same commit, with the files that match the patterns.

    Raises:
        CheckpointError: The snapshot holds other files than its manifest lists.
    """
    subfolder = options.get("subfolder") or ""
    if Path(str(source)).is_dir():
        return Path(runs.newest(Path(str(source))), subfolder).resolve()
    known = {key: options[key] for key in _HUB if options.get(key) is not None}
    known["local_files_only"] = bool(known.get("local_files_only")) or HF_HUB_OFFLINE
    if commit is not None:
        known["revision"] = commit
    wanted = [f"{subfolder}/{name}" if subfolder else name for name in (*patterns, manifest.NAME)]
    directory = Path(snapshot_download(str(source), allow_patterns=wanted, **known), subfolder)
    if options.get("verify", True):
        manifest.verify(directory, partial=True)
    return directory


@contextlib.contextmanager
def pinned(source: Any) -> Iterator[Any]:
    """Provide the directory to load, and keep it from being pruned while the context is active.

    A run's link to its policy becomes its newest checkpoint; a hub id stays itself.
    """
    path = Path(str(source))
    if not path.is_dir():
        yield source
        return
    directory = runs.newest(path)
    while (pin := runs.pin(directory)) is None and directory != path:
        directory = runs.newest(path)
    with pin or contextlib.nullcontext():
        yield source if directory == path else directory


FOREIGN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NameError, OSError,
    RuntimeError, StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""Errors of code that receives values it does not expect."""


@contextlib.contextmanager
def guarded(source: Any, *, composed: bool) -> Iterator[None]:
    """Turn errors of damaged weights, for a `composed` policy all foreign errors, into CheckpointError."""
    try:
        with _bounded(source) if composed else contextlib.nullcontext():
            yield
    except SafetensorError as error:
        raise CheckpointError(
            f"{source}: the weights are damaged ({error}); use another checkpoint of the run"
        ) from error
    except FOREIGN as error:
        if not composed or isinstance(error, PolicysmithError):
            raise
        raise misread(source, error) from error


@contextlib.contextmanager
def readable(config: Any) -> Iterator[None]:
    """Turn errors of values that no config can have into CheckpointError."""
    try:
        yield
    except FOREIGN as error:
        source = config.get("_name_or_path") if isinstance(config, dict) else None
        raise misread(source or "config.json", error) from error


def misread(source: Any, error: Exception) -> CheckpointError:
    """Return the error for a policy that cannot be built from its directory."""
    reason = str(error).strip().partition("\n")[0][:300]
    return CheckpointError(
        f"{source} cannot be loaded ({type(error).__name__}: {reason}); if its config.json is damaged, use another "
        "checkpoint of the run, or save the policy again"
    )


@contextlib.contextmanager
def _bounded(source: Any) -> Iterator[None]:
    """Raise CheckpointError as soon as a policy under construction outgrows the weights in a local directory.

    A damaged number in a config could otherwise take all memory, or hours.
    """
    sizes = _weights_in(Path(str(source)))
    if not sizes:
        yield
        return
    count, numbers = 4 * len(sizes) + 1000, 4 * sum(sizes) + (1 << 20)
    made = [0, 0]

    def check(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None:
            return
        made[0], made[1] = made[0] + 1, made[1] + parameter.numel()
        if made[0] > count or made[1] > numbers:
            raise CheckpointError(
                f"{source}: its config.json describes a policy that is larger than its weights; use another checkpoint "
                "of the run, or save the policy again"
            )

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _weights_in(directory: Path) -> list[int]:
    """Return the number of values of every tensor in the weights files of a directory."""
    sizes = []
    for path in directory.glob("model*.safetensors"):
        with safe_open(path, "pt") as weights:
            sizes += [math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()]  # noqa: SIM118
    return sizes


def refuse_misfits(source: Any, policy: nn.Module, info: Mapping[str, Any]) -> None:
    """Raise WeightsError for missing and unexpected weights, and for those of another shape."""
    complaints = [
        f"{problem}: {_some(info[key])}"
        for key, problem in (
            ("missing_keys", "not in the checkpoint"),
            ("unexpected_keys", "not in the model"),
            ("mismatched_keys", "of another shape"),
        )
        if info[key]
    ]
    if complaints:
        raise WeightsError(
            f"{source} does not fit {type(policy).__name__}; {'; '.join(complaints)}; "
            "load it with the class and the version of its parts that saved it"
        )


def refuse_not_finite(source: Any, policy: nn.Module) -> None:
    """Raise WeightsError for weights that hold NaN or an infinity."""
    broken = [
        name
        for name, weight in policy.named_parameters()
        if weight.is_floating_point()
        and not weight.is_meta
        and not weight.detach().sum(dtype=torch.float64).isfinite()
    ]
    if broken:
        raise WeightsError(
            f"{source} holds weights that are not finite: {_some(broken)}; use another checkpoint of the run"
        )


def align(model: nn.Module) -> None:
    """Copy tensors that are mapped from the weights file at unaligned addresses.

    CPU kernels sum in another order at such addresses: without this, a loaded policy differs in the last bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that no checkpoint holds, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in compat.unsaved_buffer_names(module)
    }


def _some(keys: Iterable[Any]) -> str:
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
