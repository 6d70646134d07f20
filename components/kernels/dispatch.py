"""Selection of the implementation of an operator.

Under Triton's interpreter, with `TRITON_INTERPRET=1` before the import, Triton programs also run on the CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..compat import CustomOpDef

HAS_TRITON = importlib.util.find_spec("triton") is not None
WANTED = HAS_TRITON and os.environ.get("POLICYSMITH_KERNELS") != "off"
"""False if parts must not call operators; `POLICYSMITH_KERNELS=off` leaves everything to torch."""
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def uses_kernel(values: Tensor) -> bool:
    """Return whether a part passes these values to a kernel: if they are on a GPU."""
    return WANTED and values.is_cuda


def program(module: str, name: str) -> Callable[..., Any]:
    """Return a function of `programs` whose module, and triton, are imported by the first call."""

    def launch(*arguments: Any, **options: Any) -> Any:
        found = importlib.import_module(f".programs.{module}", __package__)
        return getattr(found, name)(*arguments, **options)

    return launch


def operator(
    module: str, name: str, schema: str, reference: Callable[..., Any], mutates: tuple[str, ...] = ()
) -> CustomOpDef:
    """Define `policysmith::module_name`: a Triton program on CUDA devices with triton, else `reference`.

    The program is `programs.module.name`.
    """
    named = f"policysmith::{module}_{name}"
    defined = torch.library.custom_op(named, reference, mutates_args=mutates, schema=schema)
    assert isinstance(defined, CustomOpDef)
    defined.register_kernel("cpu", program(module, name) if INTERPRETED else reference)
    if HAS_TRITON:
        defined.register_kernel("cuda", program(module, name))
    return defined
