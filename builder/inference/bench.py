"""Latency, memory and stages of a policy's chunks, eager beside the engine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ...schemas.errors import SpecError
from ..capture import CaptureError, capturable
from ..machine import training_memory
from ..policy import BasePolicyModel
from ..policy.recipe_policy import RecipePolicy
from .example import example_samples
from .graphs import Captured
from .runner import Precision, Runner
from .stages import Stages, State

Samples = Sequence[Mapping[str, Any]]
_WARM = 3


@dataclass(frozen=True)
class Measured:
    """Times of one way to compute chunks, in milliseconds from observations on the host to actions on the host."""

    name: str
    median: float
    p99: float
    longest: float
    memory: int
    """Bytes of the weights and, on a GPU, of everything else at the peak."""
    stages: dict[str, float]
    """Milliseconds of each stage on the device; empty for a hand-written policy."""


@dataclass(frozen=True)
class Report:
    """Measurements of a policy on one device."""

    device: str
    batch: int
    repeats: int
    rows: tuple[Measured, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def lines(self) -> list[str]:
        """The measurements as a table, with one line for each way and one for each stage."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.stages))
        width = max(len(text) for text in (*(row.name for row in self.rows), *names))
        lines = [
            f"chunks of {self.batch} on {self.device}, {self.repeats} times, in ms",
            f"{'':{width}} {'median':>9} {'p99':>9} {'max':>9} {'memory':>9}",
        ]
        for row in self.rows:
            numbers = " ".join(f"{value:9.2f}" for value in (row.median, row.p99, row.longest))
            lines.append(f"{row.name:{width}} {numbers} {row.memory / 2**20:6.0f} MB")
        if names:
            lines += ["", f"{'stages alone':{width}} {' '.join(f'{row.name:>18}' for row in self.rows)}"]
        for name in names:
            spent = [f"{row.stages[name]:18.2f}" if name in row.stages else f"{'-':>18}" for row in self.rows]
            lines.append(f"{name:{width}} {' '.join(spent)}")
        return lines


def bench(
    policy: BasePolicyModel,
    device: str | torch.device,
    precision: Precision = "auto",
    *,
    batch: int = 1,
    repeats: int = 100,
    compile: bool = False,
    eager: bool = True,
) -> Report:
    """Measure a policy as it is, the same in the engine's precision, and the engine, on made-up observations.

    Args:
        policy: The policy, which is moved to the device.
        device: Device to run on.
        precision: Precision of the engine.
        batch: Number of observations at a time.
        repeats: Number of chunks to time.
        compile: Compile layers in the engine.
        eager: False to measure the engine alone.
    """
    place = torch.device(device)
    policy = cast(Any, policy).to(place).eval()
    samples = _samples(policy, batch)
    rows = []
    if eager:
        rows.append(_measured("eager, as saved", policy, policy.predict, samples, repeats, 0))
    before = _allocated(place)
    runner = Runner(policy, place, precision, compile=compile)
    inner = runner.policy
    if eager and inner.dtype != policy.dtype:
        rows.append(
            _measured(
                f"eager, {runner.precision}",
                inner,
                inner.predict,
                samples,
                repeats,
                before,
            )
        )
    name = f"engine, {runner.precision}{', compiled' if compile else ''}"
    rows.append(_measured(name, inner, runner.predict, samples, repeats, before, captured=True))
    shown = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    return Report(shown, batch, repeats, tuple(rows))


def _samples(policy: BasePolicyModel, count: int) -> Samples:
    """Return observations. Raise SpecError if they take more than half of the memory, as float32 and normalized."""
    one = example_samples(policy, 1)
    size = 8 * count * sum(value.numel() for value in one[0].values() if isinstance(value, Tensor))
    memory, owner = training_memory()
    if size > memory / 2:
        raise SpecError(
            f"{count:,} observations at a time take {size / 2**30:,.0f} GiB, and {owner} has {memory / 2**30:,.0f}",
            help="choose a smaller `--batch`",
        )
    return example_samples(policy, count)


def _measured(
    name: str,
    policy: BasePolicyModel,
    predict: Callable[..., Tensor],
    samples: Samples,
    repeats: int,
    before: int,
    captured: bool = False,
) -> Measured:
    """Time the calls of `predict`; `before` is the memory in use that is none of theirs."""
    device = policy.device
    generator = torch.Generator(device).manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        for _ in range(_WARM):
            predict(samples, generator).cpu()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            predict(samples, generator).cpu()
            times.append(1e3 * (time.perf_counter() - start))
        weights = sum(weight.numel() * weight.element_size() for weight in policy.parameters())
        peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else weights
        stages = stage_times(policy, samples, captured=captured) if isinstance(policy, RecipePolicy) else {}
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return Measured(name, statistics.median(times), p99, ordered[-1], peak, stages)


@torch.no_grad()
def stage_times(
    policy: RecipePolicy, samples: Samples, *, captured: bool, repeats: int = 10
) -> dict[str, float]:
    """Return the median milliseconds of each stage, by its name.

    On a GPU with `captured`, a stage takes what the graph of all stages up to it takes more than the one
    before; a stage that cannot be captured and those after it are left out.
    """
    stages, device = Stages(policy), policy.device
    observed = policy.observations_in(policy.collator(samples))
    tensors = {key: value for key, value in observed.items() if isinstance(value, Tensor)}
    generator = torch.Generator(device).manual_seed(0)
    found: dict[str, float] = {}
    if captured and capturable(device):
        total = 0.0
        for end, name in enumerate(stages.names, start=1):
            try:
                graph = Captured(
                    lambda batch, end=end: stages.run(State(dict(batch)), end=end),  # type: ignore[misc]
                    tensors,
                    device,
                    None,
                )
            except CaptureError:  # the engine has said why
                break
            graph(tensors, generator)
            spent = _median(graph.replay, device, repeats)
            graph.free()
            gc.collect()
            found[name], total = max(0.0, spent - total), max(spent, total)
        return found
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in observed.items()}
    state = State(batch)
    for index, name in enumerate(stages.names):

        def run(index: int = index, state: State = state) -> State:
            return stages.run(state, generator, first=index, end=index + 1)

        found[name] = _median(run, device, repeats)
        state = run()
    return found


def _median(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


__all__ = ["Measured", "Report", "bench", "stage_times"]
