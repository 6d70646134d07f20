"""Turns what goes wrong while a run trains into one error that says what to do."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...schemas.errors import PolicysmithError, TrainingError
from ...schemas.recipe import TrainingSection
from . import checkpoint

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
    """Raises TrainingError for memory that does not suffice, and for loaders and processes that ended; others pass."""
    try:
        yield
    except PolicysmithError as error:
        raise _alone(error) from error.__cause__
    except (MemoryError, OSError, RuntimeError) as error:
        cure = _cure(error, section, processes)
        if cure is None:
            raise
        last = checkpoint.latest(run)
        kept = f"`--resume` goes on from {last}" if last is not None else "no checkpoint was written yet"
        raise TrainingError(f"{cure}; {kept}") from error


def checked(policy: str, output: Any) -> dict[str, Tensor]:
    """The tensors that a policy's forward pass gives. Raises TrainingError where there is no scalar `loss` among them."""
    what = f"{policy}.forward must give a dict with a scalar tensor `loss`"
    if not isinstance(output, Mapping):
        raise TrainingError(f"{what}; it gives {type(output).__name__}")
    if "loss" not in output:
        names = ", ".join(f"`{name}`" for name in output) or "nothing"
        raise TrainingError(f"{what}; it gives {names} and no `loss`")
    loss = output["loss"]
    if not isinstance(loss, Tensor):
        raise TrainingError(f"{what}; its `loss` is of type {type(loss).__name__}")
    if loss.ndim != 0:
        raise TrainingError(
            f"{what}; its `loss` has the shape {tuple(loss.shape)}: take the mean over the values that count"
        )
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def _cure(error: Exception, section: TrainingSection, processes: int) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(mark in text for mark in _NO_MEMORY):
        return _of_memory(error, section)
    if _WORKER in text and ("exited unexpectedly" in text or "is killed by signal" in text):
        bus = "Bus error" in text or signal.Signals.SIGBUS.name in text
        scarce = "shared memory (/dev/shm)" if bus else "memory"
        return (
            f"a loader process was killed ({text.splitlines()[0].strip()}), mostly because {scarce} ran out: lower "
            f"`training.workers`, which is {section.workers}, or set it to 0"
        )
    broken = isinstance(error, torch.distributed.DistError) or any(mark in text for mark in _NO_PEER)
    if processes > 1 and broken:
        return f"another of the {processes} processes ended or does not answer ({text.splitlines()[0].strip()}); see its output"
    return None


def _of_memory(error: Exception, section: TrainingSection) -> str:
    device = "GPU" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) else "host"
    asked = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"the {device} is out of memory ({asked}). Lower `training.batch_size`, which is {section.batch_size}, and raise "
        f"`training.accumulate`, which is {section.accumulate}, by the same factor: the gradients stay the same. Or set "
        "`gradient_checkpointing: true` in the largest backbone, `training.precision: bf16`, "
        "`training.optimizer.states: 8bit`, or, for several GPUs, `training.sharding: full`"
    )


def _alone(error: PolicysmithError) -> PolicysmithError:
    """The error of a loader process without the traceback that torch puts into its message."""
    text = str(error)
    if "Original Traceback" not in text:
        return error
    told = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return type(error)(told)
