"""Floating-point operations of a step, and the rate of matrix products on the device."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .synthetic import SyntheticBuilder
from .workloads import Work


def survey(work: Work, device: torch.device, changes: list[str]) -> dict[str, Any]:
    """Return the sizes of the policy, and the operations of its step."""
    builder = SyntheticBuilder.of(work, [*changes, *_kept(work)], batch_size=1, steps=1)
    policy = builder.build(device.type).train()
    [batch] = builder.batches(policy, 1, 1, device)
    counter = FlopCounterMode(display=False)
    # fused kernels of attention are not all known to the counter, or count what they recompute
    with (
        counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
    ):
        loss = policy(batch)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    frozen_names = {f"{type(policy).__name__}.backbones.{name}" for name in policy.frozen_backbones}
    frozen = sum(counts.get(name, 0) for name in frozen_names)
    parameters = list(policy.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "flops": {
            "how": "FlopCounterMode over forward and backward of one sample, eager, without recomputation; "
            "times the batch; frozen backbones count in every step, also where a trainer runs them once",
            "step": counter.get_total_flops() * work.batch,
            "forward": forward * work.batch,
            "frozen_backbones": frozen * work.batch,
        },
    }


def ceiling(device: torch.device, size: int, seconds: float = 1.0) -> dict[str, Any]:
    """Return the rate of square matrix products: the median of the later two thirds of so many seconds."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        start = _now(device)
        for _ in range(10):
            torch.mm(a, b, out=out)
        rates.append(10 * 2 * size**3 / (_now(device) - start) / 1e12)
    late = rates[len(rates) // 3 :]
    return {"size": size, "dtype": str(dtype).removeprefix("torch."), "tflops": statistics.median(late)}


def _kept(work: Work) -> list[str]:
    """Return the overrides that turn recomputation off."""
    return ["policy.backbones.vlm.gradient_checkpointing=false"] if work.name.startswith("pi0") else []


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
