"""Time of an operation on a device, with and without its launches."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]
_SECONDS = 0.4  # for each of the two times


def measure(run: Run, device: str, captured: bool = True) -> tuple[float, float]:
    """Return medians of `gpu_ms` and `call_ms`; the first is the wall time on a CPU.

    With `captured`, the first is that of a CUDA graph, without launches of the host.
    """
    for _ in range(3):
        run()
    wall = timed(run, 1, device)
    calls = max(min(int(_SECONDS / wall / 5), 50), 1)
    call = statistics.median(timed(run, calls, device) for _ in range(5)) * 1e3
    if device == "cpu":
        return wall * 1e3, call
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
        run()
    flushed = torch.empty(2**28, dtype=torch.uint8, device=device)
    times = []
    for _ in range(max(min(int(_SECONDS / wall), 50), 3)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), call


def timed(run: Run, calls: int, device: str) -> float:
    """Return the wall seconds of a call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(device: str, count: int) -> float:
    """Return the bytes a second that a copy reads and writes."""
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    gpu, _ = measure(lambda: target.copy_(source), device)
    return 2 * count / gpu * 1e3


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "python": platform.python_version(), "torch": torch.__version__}
