"""One process for each trainer of a work, so that none inherits patches, compiled code or settings of another."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .protocol import Protocol
    from .workloads import Work


class Failed(Exception):
    """Raised when a trainer does not take its steps, with the reason."""


class Variant:
    """A trainer in a separate process, seen from the process that compares them."""

    def __init__(
        self,
        name: str,
        work: Work,
        protocol: Protocol,
        device: str,
        changes: Sequence[str] = (),
        survey: bool = False,
        gemm: int | None = None,
    ) -> None:
        """Start the process, which builds policy and batches; it surveys the work or, by `gemm`, the device first."""
        self.name = name
        self.losses: list[float] = []
        self.notes: list[str] = []
        self.peak: int | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(other, name, work, protocol, device, list(changes), survey, gemm),
            daemon=True,
        )
        self._process.start()
        other.close()

    def setup(self) -> dict[str, Any]:
        """Wait until the trainer is ready, and return its description. Raise Failed if it is not."""
        return self._answer()

    def run(self, steps: int) -> float:
        """Take steps, and return the seconds from the first to the last. Raise Failed if the trainer does."""
        if not steps:
            return 0.0
        with suppress(BrokenPipeError):  # it failed, and sent the reason
            self._pipe.send(steps)
        answer = self._answer()
        self.losses, self.notes, self.peak = answer["losses"], answer["notes"], answer["peak"]
        return float(answer["seconds"])

    def stop(self) -> None:
        """End the process."""
        if self._process.is_alive():
            try:
                self._pipe.send(None)
            except OSError:
                self._process.terminate()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"its process ended with code {self._process.exitcode}") from None
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer


def _serve(pipe: Connection, *order: Any) -> None:
    """Run a trainer in its process."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # transformers.Trainer would spread over all
    try:
        _train(pipe, *order)
    except Exception as error:  # noqa: BLE001  # the other trainers go on in any case
        from .variants import LeftOut

        if not isinstance(error, LeftOut):
            traceback.print_exc()
        kind = "" if isinstance(error, LeftOut) else f"{type(error).__name__}: "
        pipe.send({"failed": f"{kind}{error}".strip().partition("\n")[0]})


def _train(
    pipe: Connection,
    name: str,
    work: Work,
    protocol: Protocol,
    device: str,
    changes: list[str],
    survey: bool,
    gemm: int | None,
) -> None:
    start = time.perf_counter()
    if not name.startswith("ours"):
        os.environ["POLICYSMITH_KERNELS"] = "off"
    import torch

    from . import flops
    from .protocol import Pace, Stop
    from .setup import Bench
    from .variants import VARIANTS

    place = torch.device(device)
    description: dict[str, Any] = {}
    if gemm is not None:
        description["machine"] = {
            **_machine(),
            "gemm": flops.ceiling(place, gemm),
            "peak_tflops": _peak(place),
        }
    if survey:
        description["survey"] = flops.survey(work, place, changes)
        gc.collect()
    bench = Bench.make(work, protocol, place, changes)
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    pipe.send({**description, "build_seconds": time.perf_counter() - start, "ema": bench.section.ema})
    try:
        VARIANTS[name](bench, Pace(pipe, place, protocol.log_every))
    except Stop:
        pipe.close()


def _peak(place: Any) -> float | None:
    from policysmith.builder.training.distributed.accelerator import peak

    rate = peak(place)
    return None if rate is None else rate / 1e12


def _machine() -> dict[str, Any]:
    from policysmith.builder.provenance import hardware, machine_versions

    return {"hardware": hardware(), "versions": machine_versions("triton", "peft", "liger-kernel")}
