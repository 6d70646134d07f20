"""The device and precision of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from ....schemas.errors import TrainingError
from ....schemas.recipe import TrainingSection
from .sharding import wrapper

_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 operations a second by the makers' data sheets, by a part of the device's name."""
_FOREVER = timedelta(days=365)


def require_device(name: str) -> None:
    """Raise TrainingError for a device that does not exist, or that is none of `cpu`, `cuda` and `meta`."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"no device is called `{name}`; use `cpu`, `cuda` or `cuda:<number>`") from error
    if device.type not in ("cpu", "cuda", "meta"):
        raise TrainingError(f"`{name}` is not supported; use `cpu` or `cuda`")
    if device.type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise TrainingError("no CUDA device is available; use `cpu`")
    if device.index is not None and device.index >= count:
        raise TrainingError(f"`{name}` does not exist; the last CUDA device is `cuda:{count - 1}`")


def make_accelerator(section: TrainingSection, device: str | None) -> Accelerator:
    """Build an accelerator with the section's precision, on `cpu`, `cuda`, or None for the best available.

    Raises:
        TrainingError: if the device is not available or does not support the precision.
    """
    if device not in (None, "cpu", "cuda"):
        require_device(device)
        raise TrainingError(
            f"training runs on `cpu` or `cuda`, not on `{device}`; to choose a GPU, set `CUDA_VISIBLE_DEVICES`"
        )
    if device is not None:
        require_device(device)
    on_gpu = torch.cuda.is_available() if device is None else device == "cuda"
    bf16 = section.precision == "bf16" or (
        section.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if section.precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainingError("this GPU has no bf16 arithmetic; set `training.precision: fp32`")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # otherwise accelerate keeps device and precision of the process's first run
        AcceleratorState._reset_state(reset_partial_state=True)
    minutes = section.timeout_minutes
    longest = _FOREVER if minutes is None else min(timedelta(minutes=min(minutes, 1e6) + 5.0), _FOREVER)
    return Accelerator(
        kwargs_handlers=[InitProcessGroupKwargs(timeout=longest)],
        cpu=not on_gpu,
        mixed_precision="bf16" if bf16 else "no",
        gradient_accumulation_steps=section.accumulate,
        step_scheduler_with_optimizer=False,
    )


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the work of a GPU on a separate stream while the context is active.

    A wrapper for several processes keeps the stream on which it first met the weights, and adds up their
    gradients there. Sums on the default stream cannot be captured in a CUDA graph.
    """
    if device.type != "cuda":
        yield
        return
    before, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)


def setting(accelerator: Accelerator, model: nn.Module) -> str:
    """Describe processes, device and precision of a run."""
    world = accelerator.num_processes
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    spread = f"{world} processes ({wrapper(model)})" if world > 1 else "1 process"
    return f"{spread} on {accelerator.device.type}, {precision}"


def peak(device: torch.device) -> float | None:
    """Return the peak of a device in dense bf16 operations a second; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in _PEAKS.items() if part in name), None)
