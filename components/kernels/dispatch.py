"""Which implementation of an operator runs where.

Under Triton's interpreter, `TRITON_INTERPRET=1` before the import, the Triton programs run on the CPU too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

HAS_TRITON = importlib.util.find_spec("triton") is not None
WANTED = HAS_TRITON and os.environ.get("POLICYSMITH_KERNELS") != "off"
"""Whether parts call operators where these are faster; `POLICYSMITH_KERNELS=off` leaves all to torch."""
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def fused(values: Tensor) -> bool:
    """Whether a part leaves these values to a kernel: where they are on a GPU."""
    return WANTED and values.is_cuda


def program(module: str, name: str) -> Callable[..., Any]:
    """A function of `programs`; its module, and triton, are imported by the first call."""

    def launch(*arguments: Any, **options: Any) -> Any:
        found = importlib.import_module(f".programs.{module}", __package__)
        return getattr(found, name)(*arguments, **options)

    return launch


def operator(
    module: str, name: str, schema: str, reference: Callable[..., Any], mutates: tuple[str, ...] = ()
) -> CustomOpDef:
    """`policysmith::module_name`: `programs.module.name` on CUDA devices with triton, `reference` everywhere else."""
    named = f"policysmith::{module}_{name}"
    defined = torch.library.custom_op(named, reference, mutates_args=mutates, schema=schema)
    assert isinstance(defined, CustomOpDef)
    defined.register_kernel("cpu", program(module, name) if INTERPRETED else reference)
    if HAS_TRITON:
        defined.register_kernel("cuda", program(module, name))
    return defined
