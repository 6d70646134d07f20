"""Profile of a training step: a table of its time, and a trace for Perfetto (https://ui.perfetto.dev).

After `WARM` steps, phases are timed over `TIMED` steps by the clock and, on a GPU, by its own events; then
`TRACED` steps run under torch's profiler. The busy time of the GPU comes from the trace, the length of a step
from the timed steps, because the profiler slows the host down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

WARM, TIMED, TRACED = 30, 20, 5
NEEDED = WARM + TIMED + TRACED
"""Steps of a profile. Within `WARM` the run decides about CUDA graphs, unless batches seldom fit one."""
PHASES = ("data wait", "forward", "backward", "optimizer", "replay")


class Profile:
    """Measurements of the first steps of a run, written into `directory` after them."""

    def __init__(self, directory: Path, device: torch.device, writes: bool = True) -> None:
        """Measure in every process, so that all slow down equally; one of them `writes`."""
        self._directory, self._device, self._writes = directory, device, writes
        self._taken, self._began = 0, 0.0
        self._host = dict.fromkeys(PHASES, 0.0)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._total = 0.0
        self._trace: profile | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time while the context is active as one of PHASES."""
        if self._trace is not None:
            with record_function(name):
                yield
            return
        if not WARM <= self._taken < WARM + TIMED:
            yield
            return
        on_gpu = self._device.type == "cuda"
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if on_gpu else (None, None)
        start = time.perf_counter()
        if begin is not None:
            begin.record()
        yield
        if begin is not None and end is not None:
            end.record()
            self._marks.append((name, begin, end))
        self._host[name] += time.perf_counter() - start

    def stepped(self) -> str:
        """Count a step. Return the table after the last one, otherwise an empty text."""
        self._taken += 1
        if self._taken == WARM:
            self._wait()
            self._began = time.perf_counter()
        elif self._taken == WARM + TIMED:
            self._wait()
            self._total = time.perf_counter() - self._began
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._trace = profile(activities=activities)
            self._trace.start()
        elif self._taken == NEEDED and self._trace is not None:
            self._wait()
            self._trace.stop()
            trace, self._trace = self._trace, None
            return self._write(trace) if self._writes else ""
        return ""

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _write(self, trace: profile) -> str:
        self._directory.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(self._directory / "trace.json.gz"))
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        averages = trace.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70)
        (self._directory / "operators.txt").write_text(averages)
        measured = self._measured(trace)
        (self._directory / "step.json").write_text(json.dumps(measured, indent=2) + "\n")
        text = _table(measured)
        (self._directory / "step.txt").write_text(text + "\n")
        return f"{text}\nprofile {self._directory}: step.txt, operators.txt, trace.json.gz (opens in ui.perfetto.dev)"

    def _measured(self, trace: profile) -> dict[str, Any]:
        """Return the milliseconds of a step, by phase."""
        total = 1e3 * self._total / TIMED
        host = {name: 1e3 * seconds / TIMED for name, seconds in self._host.items() if seconds}
        host["rest"] = max(total - sum(host.values()), 0.0)
        measured: dict[str, Any] = {"steps": TIMED, "step_ms": total, "host_ms": host}
        if self._device.type == "cuda":
            device = dict.fromkeys(host.keys() - {"rest"}, 0.0)
            for name, begin, end in self._marks:
                device[name] += begin.elapsed_time(end) / TIMED
            busy = _busy(trace) / 1e3 / TRACED
            measured |= {"device_ms": device, "gpu_busy_ms": busy, "gpu_idle_ms": max(total - busy, 0.0)}
        return measured


def _busy(trace: profile) -> float:
    """Return the microseconds during which the GPU ran anything; annotations span gaps, and do not count."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in trace.events() or ()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    )
    busy, reached = 0.0, float("-inf")
    for start, end in spans:
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return busy


def _table(measured: dict[str, Any]) -> str:
    total, host, device = measured["step_ms"], measured["host_ms"], measured.get("device_ms")
    lines = [f"{'where a step goes':18}{'host ms':>10}{'share':>8}" + (f"{'GPU ms':>10}" if device else "")]
    for name, value in host.items():
        on_device = f"{device[name]:>10.2f}" if device and name in device else ""
        lines.append(f"{name:18}{value:>10.2f}{value / total:>8.0%}{on_device}")
    lines.append(f"{'step':18}{total:>10.2f}{1:>8.0%}")
    if device:
        idle = measured["gpu_idle_ms"]
        lines.append(f"{'GPU idle':18}{idle:>10.2f}{idle / total:>8.0%}")
    return "\n".join(lines)
