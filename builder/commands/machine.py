"""Verbs about this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

from ...schemas.errors import SimulatorError
from ..data.frames.cache import cache_root
from ..machine import training_memory
from ..provenance import MACHINE, POLICY, package_version

_LITTLE = 10  # GiB of free disk


def doctor(args: Namespace) -> int:
    """Run `policysmith doctor`, which exits with 1 if something is missing that training needs."""
    healthy = True
    for name, fine, text in _findings():
        sys.stdout.write(f"{'ok' if fine else '!!'}  {name:<12} {text}\n")
        healthy &= fine or name == "simulator"
    return 0 if healthy else 1


def _findings() -> Iterator[tuple[str, bool, str]]:
    yield "python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in dict.fromkeys((*POLICY, *MACHINE, "torchao", "triton")):
        found = package_version(package)
        needed = package in POLICY
        yield (
            package,
            found is not None or not needed,
            found or f"not installed{'' if needed else ', optional'}",
        )
    memory, owner = training_memory()
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        bf16 = "" if torch.cuda.is_bf16_supported() else ", without bf16"
        text = f"{torch.cuda.device_count()} x {owner}, {memory / 2**30:.0f} GiB, sm_{major}{minor}{bf16}"
        yield "gpu", True, f"{text}, CUDA {torch.version.cuda}"
    else:
        yield "gpu", True, f"none; training runs on {os.cpu_count()} cores with {memory / 2**30:.0f} GiB"
    yield _simulator()
    for name, path in (
        ("frame cache", cache_root()),
        ("hub cache", Path(HF_HUB_CACHE)),
        ("runs", Path.cwd()),
    ):
        free = shutil.disk_usage(_existing(path)).free / 2**30
        yield name, free >= _LITTLE, f"{path}, {free:,.0f} GiB free"
    yield "hub", True, "offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "online"


def _simulator() -> tuple[str, bool, str]:
    from ..simulation.offscreen import import_mujoco

    try:
        import_mujoco(render=True)
    except SimulatorError as error:
        return "simulator", False, str(error)
    return "simulator", True, f"MuJoCo renders with {os.environ.get('MUJOCO_GL', 'its default')}"


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


__all__ = ["doctor"]
