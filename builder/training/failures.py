"""Errors of a run, explained with a cure."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...schemas.errors import PolicysmithError, TrainingError
from ...schemas.recipe import TrainingSection
from .. import runs

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "Cannot allocate memory")
_NO_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Connection refused",
)
_WORKER = "DataLoader worker"


@contextmanager
def explained(run: Path, section: TrainingSection, processes: int) -> Iterator[None]:
    """Raise TrainingError, with a cure, for a lack of memory and for loaders and processes that ended; other errors pass."""
    try:
        yield
    except PolicysmithError as error:
        raise _without_traceback(error) from error.__cause__
    except (MemoryError, OSError, RuntimeError) as error:
        cure = _cure(error, section, processes)
        if cure is None:
            raise
        last = runs.latest(run)
        kept = f"`--resume` goes on from {last}" if last is not None else "no checkpoint was written yet"
        raise TrainingError(f"{cure}; {kept}") from error


def _cure(error: Exception, section: TrainingSection, processes: int) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(mark in text for mark in _NO_MEMORY):
        return _memory_cure(error, section)
    if _WORKER in text and ("exited unexpectedly" in text or "is killed by signal" in text):
        bus = "Bus error" in text or signal.Signals.SIGBUS.name in text
        scarce = "shared memory (/dev/shm)" if bus else "memory"
        return (
            f"a loader process was killed ({text.splitlines()[0].strip()}), mostly because {scarce} ran out: lower "
            f"`training.workers`, which is {section.workers}, or set it to 0"
        )
    disconnected = isinstance(error, torch.distributed.DistError) or any(mark in text for mark in _NO_PEER)
    if processes > 1 and disconnected:
        return (
            f"another of the {processes} processes ended or does not answer ({text.splitlines()[0].strip()}); "
            "see its output"
        )
    return None


def _memory_cure(error: Exception, section: TrainingSection) -> str:
    device = "GPU" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) else "host"
    request = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"the {device} is out of memory ({request}). Lower `training.batch_size`, which is {section.batch_size}, and "
        f"raise `training.accumulate`, which is {section.accumulate}, by the same factor: the gradients stay the same. "
        "Or set `gradient_checkpointing: true` in the largest backbone, `training.precision: bf16`, "
        "`training.optimizer.states: 8bit`, or, for several GPUs, `training.sharding: full`"
    )


def _without_traceback(error: PolicysmithError) -> PolicysmithError:
    """Return the error of a loader process without the traceback that torch puts into its message."""
    text = str(error)
    if "Original Traceback" not in text:
        return error
    return type(error)(text.rpartition(f"{type(error).__name__}: ")[2].strip())
