"""Capture of computations as CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import compat


class CaptureError(Exception):
    """Raised when a computation cannot be captured."""


def capturable(device: torch.device) -> bool:
    """Return whether work on a device can be captured."""
    return device.type == "cuda"


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Capture what runs while the context is active, and compile nothing."""
    here = torch.cuda.current_stream()
    with (
        compat.masks_as_outside_capture(),
        torch.compiler.set_stance("eager_on_recompile"),
        # other threads go on calling the driver meanwhile
        torch.cuda.graph(
            graph,
            pool=pool,
            stream=None if here == torch.cuda.default_stream() else here,
            capture_error_mode="thread_local",
        ),
    ):
        yield


@contextmanager
def error_on_sync() -> Iterator[None]:
    """Raise RuntimeError for operations that wait for the GPU while the context is active."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
